"""``python -m services.agent_runner`` serves; with the name of a command (`cli.COMMANDS`) it does that instead."""

import sys

from services.agent_runner import cli
from services.agent_runner.app import create_app
from services.common.serve import serve

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in cli.COMMANDS:
        sys.exit(cli.run(sys.argv[1], sys.argv[2:]))
    serve("agent_runner", create_app)
