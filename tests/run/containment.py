"""What tests leave running ends with the run, however a test or the run ends.

The run is a process inside another one that does nothing but this: orphans of the run become its children (Linux calls that a
subreaper), it takes their exit codes as init would, and at the end it kills those that are left. `kill -9` of the outer process escapes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Iterable, Sequence

import psutil

CONTAINED = "TUNEMESH_TEST_CONTAINED"
_PR_SET_CHILD_SUBREAPER = 36
_WAIT_S = 5.0


def is_contained() -> bool:
    """Whether this process is the inner one."""
    return os.environ.get(CONTAINED) == str(os.getppid())


def run_contained(command: Sequence[str]) -> int:
    """Run the command as the inner process and return its exit code; SIGTERM asks it to end, as Ctrl-C does.

    Raises:
        OSError: the system refuses to make this process a subreaper.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    inner = subprocess.Popen(command, env={**os.environ, CONTAINED: str(os.getpid())})
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the inner process too
    signal.signal(signal.SIGTERM, lambda *_: os.kill(inner.pid, signal.SIGINT))
    try:
        return _wait_for(inner.pid)
    finally:
        _kill(psutil.Process().children(recursive=True))


def end_orphans() -> list[str]:
    """Kill what ended processes of the run have left running; say and return the command lines. Nothing where there is no outer process."""
    if not is_contained():
        return []
    inner = psutil.Process()
    orphans = [child for child in psutil.Process(os.getppid()).children() if child != inner]
    lines = _kill(process for orphan in orphans for process in (orphan, *_descendants(orphan)))
    for line in lines:
        print(f"left running by a test, killed now: {line}", flush=True)
    return lines


def _wait_for(inner: int) -> int:
    while True:
        pid, status = os.wait()
        if pid == inner:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _kill(processes: Iterable[psutil.Process]) -> list[str]:
    found, lines = list(processes), []
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):  # ended by itself
            if process.status() != psutil.STATUS_ZOMBIE:
                lines.append(" ".join(process.cmdline())[:160] or process.name())
                process.kill()
    psutil.wait_procs(found, timeout=_WAIT_S)
    return lines
