"""``python -m services.policy_proxy --config FILE``."""

from services.common.serve import serve
from services.policy_proxy.app import create_app

if __name__ == "__main__":
    serve("policy_proxy", create_app)
