"""Decides what follows when a process of the mesh ends: whether it starts again, after what pause, and what an operator is told.

Pure: knows exit codes and the last lines of a log, no processes and no clock. `supervised` acts on what is decided here.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from services.common.platform.settings import EXIT_BAD_CONFIGURATION
from services.mesh.runner.embedded import last_line
from services.mesh.runner.plan import Process
from services.mesh.runner.state import State

_CONFIGURATION_ERROR = re.compile(r"configuration error: [^\\\n]*")


@dataclass(frozen=True, slots=True)
class Final:
    """The state that a process stays in, and why."""

    state: State
    message: str = ""


class Backoff:
    """The pauses between restarts: each is twice the one before, and a life that lasted begins anew."""

    def __init__(self, *, initial_s: float, max_s: float, reset_s: float) -> None:
        """`reset_s`: who lived longer than this is started again after `initial_s`."""
        self._initial_s, self._max_s, self._reset_s = initial_s, max_s, reset_s
        self._next_s = initial_s

    def pause_s(self, lived_s: float) -> float:
        """Return how long to wait before the next start, after a life of `lived_s`."""
        if lived_s > self._reset_s:
            self._next_s = self._initial_s
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, self._max_s)
        return pause_s


def after_exit(process: Process, code: int, last_words: str) -> Final | None:
    """Return the state that `process` stays in after it ended by itself; None when it is to be started again.

    Args:
        process: what was planned for it.
        code: its exit code; negative: the number of the signal that ended it.
        last_words: of its log.
    """
    if process.in_memory_broker:
        # A new one would have an empty log beside services that hold states derived from the lost one.
        return Final("failed", f"{ending(code)}; its log was in memory and is lost: stop the mesh (make down) and start it again")
    if code == EXIT_BAD_CONFIGURATION or (code > 0 and _CONFIGURATION_ERROR.match(last_words)):
        return Final("failed", last_words)
    if code == 0 and process.restart in ("no", "on-failure"):
        return Final("done")
    if process.restart == "no":
        return Final("failed", f"{ending(code)}: {last_words}")
    return None


def ending(code: int) -> str:
    """Return how a process ended, in words."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def last_words(tail: str) -> str:
    """Return the line that says most about an end: a configuration error in the end of a log, else its last line."""
    # Triton wraps what a model raised into lines of its own.
    wrapped = _CONFIGURATION_ERROR.search(tail)
    return wrapped[0] if wrapped else last_line(tail)
