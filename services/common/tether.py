"""Owns the tie of a child process to its parent: when the parent dies, however it dies, the kernel kills the child.

Runs as ``python -m services.common.tether PARENT_PID COMMAND…`` and becomes COMMAND. A program of its own and not a hook between
fork and exec, because Python code there may deadlock on locks that other threads held when the process was forked.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>; the setting survives exec."""


def tether_to(parent_pid: int) -> None:
    """Asks the kernel for SIGKILL when the parent is gone. Exits where it is gone already. Does nothing on systems without prctl."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        sys.exit("the parent is gone, not starting")


def main() -> None:
    """Ties this process to the given parent, then becomes the given command."""
    parent_pid, command = int(sys.argv[1]), sys.argv[2:]
    tether_to(parent_pid)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]} cannot be run: {error.strerror}")


if __name__ == "__main__":
    main()
