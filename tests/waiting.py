"""Waits of tests without an event loop: for a condition, with a limit that fits the machine. Imports in both environments."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tests.limits import seconds

T = TypeVar("T")


def eventually(
    ask: Callable[[], T],
    enough: Callable[[T], bool] = bool,
    *,
    limit_s: float = 60.0,
    every_s: float = 0.1,
    not_yet: tuple[type[Exception], ...] = (),
) -> T:
    """Ask until the answer is enough, and return it.

    Args:
        ask: gives an answer.
        enough: whether it is the one that was waited for.
        limit_s: seconds of the reference machine; then the test fails with the last answer.
        every_s: pause between two questions.
        not_yet: exceptions of `ask` that say that there is no answer yet; the last one is raised when the time is up.
    """
    deadline = time.monotonic() + seconds(limit_s)
    while True:
        is_last = time.monotonic() > deadline  # whatever happened while this process stood still is looked at once more
        try:
            found = ask()
        except not_yet:
            if is_last:
                raise
        else:
            if enough(found):
                return found
            assert not is_last, f"still {found!r} after {seconds(limit_s):.0f} s"
        time.sleep(every_s)
