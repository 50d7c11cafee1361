"""What a decayed counter would read under other half-lives, as far as can be known. Pure.

A feature spec that changes `counters.half_lives_events` meets states that were made under the half-lives of before. What stays, stays as
it is. A new half-life begins with an estimate. A counter with half-life h weighs the past like a window of h / ln 2 events (less while
the stream is young), so what is known is how many acts fell into some windows, all of the stream being the longest; between two of them
acts are taken to have come evenly. Of an even stream that is exact. Of any other it lies between the counters of the shorter and of the
longer window, and the true counter replaces it as events come: after one half-life half of the error is left.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from services.common.ranker.tallies import EMPTY_TALLY, Tally

# Of a feature spec. States of before do not say how many theirs had; their size does.
MAX_HALF_LIVES = 4


def window_events(half_life_events: float, clock: float) -> float:
    """Return how many events a decayed counter weighs when the stream has had `clock` of them: what it reads if each event counts 1."""
    return half_life_events / math.log(2.0) * -math.expm1(-math.log(2.0) * clock / half_life_events)


def under_other_half_lives(
    tally: Tally, decayed: Sequence[Tally], before: Sequence[float], after: Sequence[float], clock: float
) -> list[Tally]:
    """Return the decayed counters for the half-lives `after`.

    Args:
        tally: all acts, undecayed.
        decayed: one counter for each of `before`; both may be empty.
        before: rising.
        after: rising.
        clock: events of the whole stream when the counters were brought up to date.
    """
    kept = dict(zip(before, decayed, strict=True))
    windows = [0.0, *(window_events(half_life, clock) for half_life in before), clock]
    known = [EMPTY_TALLY, *decayed, tally]
    return [kept[one] if one in kept else _between(windows, known, window_events(one, clock)) for one in after]


def _between(windows: Sequence[float], known: Sequence[Tally], window: float) -> Tally:
    """Interpolate; `windows` rise and begin with 0."""
    at = min(max(bisect_left(windows, window), 1), len(windows) - 1)
    low, high = windows[at - 1], windows[at]
    share = min((window - low) / (high - low), 1.0) if high > low else 1.0
    return Tally(*(one + share * (two - one) for one, two in zip(known[at - 1], known[at], strict=True)))
