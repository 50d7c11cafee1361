"""A process that stands still: SIGSTOP, and a wait until it has taken effect. Imports in both environments."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.limits import seconds

_STOPPED = {"T", "t"}


def suspend(pid: int, timeout_s: float = 30.0) -> None:
    """Stop a process; return once none of its threads runs any more.

    The signal goes to one thread, and that one stops the others when it is next scheduled. On a busy machine they go on for 20 ms until
    then, which is enough for a broker to answer.

    Raises:
        ProcessLookupError: it has ended.
        TimeoutError: it still runs.
    """
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + seconds(timeout_s)
    while not _states(pid) <= _STOPPED:
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} does not stand still: its threads are {sorted(_states(pid))}")
        time.sleep(0.001)


def resume(pid: int) -> None:
    """Let it go on."""
    os.kill(pid, signal.SIGCONT)


def _states(pid: int) -> set[str]:
    """Return the states of all threads, as ps calls them; what stands behind the last bracket of a line is not the program's name."""
    found = set[str]()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found.add((task / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            continue
    return found
