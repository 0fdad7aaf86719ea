"""``python -m services.trajectory_store --config FILE`` serves; ``… list`` (show, export, import, audit …) asks a running store."""

import sys

from services.common.serve import serve
from services.trajectory_store.app import create_app
from services.trajectory_store.cli import COMMANDS, main

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        sys.exit(main(sys.argv[1:]))
    serve("trajectory_store", create_app)
