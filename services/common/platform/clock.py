"""The wall clock, as every part of the mesh reads it. Imports the standard library only.

Whoever decides by time takes the clock, or the time, as an argument (`wall_ms: Callable[[], int]`), so that a test can choose it; what
wires a process together passes this one. Durations and deadlines are taken from `time.monotonic`, which never steps.
"""

from __future__ import annotations

import time


def wall_ms() -> int:
    """Return Unix milliseconds."""
    return time.time_ns() // 1_000_000
