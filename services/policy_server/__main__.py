"""``python -m services.policy_server --config FILE``."""

from services.common.serve import serve
from services.policy_server.app import create_app

if __name__ == "__main__":
    serve("policy_server", create_app)
