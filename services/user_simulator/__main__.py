"""``python -m services.user_simulator``."""

from services.common.serve import serve
from services.user_simulator.app import create_app

if __name__ == "__main__":
    serve("user_simulator", create_app)
