"""``python -m services.trajectory_store --config FILE``."""

from services.common.serve import serve
from services.trajectory_store.app import create_app

if __name__ == "__main__":
    serve("trajectory_store", create_app)
