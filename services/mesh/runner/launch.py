"""Executes a command so that it dies with the supervisor: `python launch.py SUPERVISOR_PID NICENESS COMMAND…`. Used by the supervisor only.

The kernel kills a process with PR_SET_PDEATHSIG when its parent ends, even by kill -9. The flag must be set in the child, and a
hook between fork and exec is unsafe in a process with threads; hence this program, which sets the priority too. Imports the standard
library only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_AUTOGROUP = "/proc/self/autogroup"


def main(argv: list[str]) -> None:
    """Replace this process by the command, tied to the life of the supervisor."""
    supervisor_pid, niceness, command = int(argv[1]), int(argv[2]), argv[3:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor_pid:  # it ended before the flag was set
        raise SystemExit(1)
    if niceness > 0:
        yield_to_others(niceness)
    try:
        os.execv(command[0], command)
    except OSError as error:
        print(f"cannot execute {command[0]}: {error.strerror}", file=sys.stderr)
        raise SystemExit(127) from None


def yield_to_others(niceness: int) -> None:
    """Lower the priority of this process and of what it starts, within its session and between sessions.

    Where the kernel groups by session (sched_autogroup_enabled), nice counts only within a session, and each service has its own; the
    group's nice value is set in /proc. A kernel without groups has no such file. See sched(7), "The autogroup feature".
    """
    # Never a higher priority than the mesh itself was started with: that needs rights.
    os.setpriority(os.PRIO_PROCESS, 0, max(niceness, os.getpriority(os.PRIO_PROCESS, 0)))
    for _ in range(20):
        try:
            with open(_AUTOGROUP, "w", encoding="ascii") as group:  # noqa: PTH123 # pathlib would double this program's start
                group.write(str(niceness))
        except BlockingIOError:  # without privileges one such change a tenth of a second is allowed, on the whole machine
            time.sleep(0.1)
        except OSError:
            return
        else:
            return


if __name__ == "__main__":
    main(sys.argv)
