"""Python imports this at start-up where the folder is on PYTHONPATH: the server's processes, which are spawned, all get the import stub."""

import gpu_package_stub

gpu_package_stub.install()
