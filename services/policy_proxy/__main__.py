"""``python -m services.policy_proxy --config FILE``."""

import os

from services.common.serve import serve
from services.policy_proxy.app import create_app

if __name__ == "__main__":
    # There is one text at a time to encode; handing it to a pool of threads costs as much as encoding it.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    serve("policy_proxy", create_app)
