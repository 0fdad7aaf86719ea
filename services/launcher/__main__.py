"""``python -m services.launcher``: the same as the ``frontdesk`` command."""

import sys

from services.launcher.cli import main

if __name__ == "__main__":
    sys.exit(main())
