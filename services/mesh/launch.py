"""Executes a command so that it dies with the supervisor: `python launch.py SUPERVISOR_PID COMMAND…`. Used by the supervisor only.

The kernel kills a process with PR_SET_PDEATHSIG when its parent ends, even by kill -9. The flag must be set in the child, and a
hook between fork and exec is unsafe in a process with threads; hence this program. Imports the standard library only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Replace this process by the command, tied to the life of the supervisor."""
    supervisor_pid, command = int(argv[1]), argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor_pid:  # it ended before the flag was set
        raise SystemExit(1)
    try:
        os.execv(command[0], command)
    except OSError as error:
        print(f"cannot execute {command[0]}: {error.strerror}", file=sys.stderr)
        raise SystemExit(127) from None


if __name__ == "__main__":
    main(sys.argv)
