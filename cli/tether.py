"""Bind a child's life to its parent's, then become the child: `python -I -S tether.py PARENT COMMAND...`.

Linux sends SIGTERM to the child when the thread that started it is gone, however that ended (prctl(2),
PR_SET_PDEATHSIG), so a supervisor that is killed outright leaves no orphans that hold ports and databases. The setting
survives execve(2).
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to PARENT and replace it by COMMAND."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call above
            sys.exit(128 + signal.SIGTERM)
    os.execv(command[0], command)  # noqa: S606 - a list, no shell


if __name__ == "__main__":
    main()
