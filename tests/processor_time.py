"""What work costs in processor time, for tests that compare two costs within one run. Imports in both environments.

A comparison of two single measurements is a matter of luck: a collection of garbage in a worker that has run thousands of tests takes
longer than the work, and other processes take the caches away. So the works take turns, the collector is off meanwhile, and the quickest
round of each counts: what disturbs only ever adds.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator

ROUNDS = 5


def quickest_s(*works: Callable[[], object], rounds: int = ROUNDS, clock: Callable[[], float] = time.thread_time) -> list[float]:
    """Return the seconds that the quickest of `rounds` of each work took by `clock` (this thread's processor time by default)."""
    costs: list[list[float]] = [[] for _ in works]
    with _without_collector():
        for _ in range(rounds):
            for work, taken in zip(works, costs, strict=True):
                began = clock()
                work()
                taken.append(clock() - began)
    return [min(taken) for taken in costs]


def growth(small: Callable[[], object], large: Callable[[], object], *, rounds: int = ROUNDS) -> float:
    """Return how many times longer the large work takes: n where it is n times as large and time grows with size, n² with its square."""
    small_s, large_s = quickest_s(small, large, rounds=rounds)
    return large_s / small_s


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
