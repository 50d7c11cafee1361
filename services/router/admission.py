"""How many requests the router works on at once: as many as are answered well within their callers' deadlines. Pure: the clock is given.

More requests than the mesh can answer must not all be late. While it is saturated, latency grows with the number of requests under way
(Little's law), so the limit follows from what latency is wanted: a share of the deadline. It shrinks in proportion when nine tenths of the
answers are not within that share, and grows by a tenth while it binds and they are. A request over the limit, or one whose deadline is
shorter than what answers take at the moment, is refused before it costs anything (`Overloaded`, with a time after which to come again).

What it promises (goodput at three times the capacity, refusals below the capacity, recovery) is simulated over many draws:
tests/unit/services/router/test_admission.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from services.common.platform.errors import Overloaded

# A verdict about the limit rests on so many answers at least, and on what happened in so long.
_WINDOW_ANSWERS, _WINDOW_S = 10, 0.1
_QUANTILE = 0.9
# Of the limit, in one step down; and what a step up adds.
_MOST_DOWN, _LEAST_DOWN = 0.5, 0.95
_UP_FACTOR, _UP_STEP = 1.1, 1.0
# Weight of the newest answer in the mean latency.
_LATENCY_WEIGHT = 0.1
_START_FACTOR = 4
_MIN_RETRY_S, _MAX_RETRY_S = 0.02, 5.0
# A request that was given up before so much of its time had passed says nothing about latency.
_GIVEN_UP_LATE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """Bounds of the adaptive limit."""

    least: int
    """So many requests are always let in."""
    most: int
    """Never more than these."""
    latency_share: float
    """Of a request's time: nine of ten answers are to take no more of it."""


@dataclass(frozen=True, slots=True)
class Entered:
    """A request that was let in; give it to `left` once."""

    at_s: float
    budget_s: float


class Admission:
    """Belongs to one event loop."""

    def __init__(self, limits: AdmissionLimits, monotonic_s: Callable[[], float]) -> None:
        """`monotonic_s` tells seconds on a clock that never goes back."""
        self._limits = limits
        self._monotonic_s = monotonic_s
        self._limit = float(min(_START_FACTOR * limits.least, limits.most))
        self._running = 0
        self._latency_s = 0.0
        self.num_refused = 0
        """Since the start."""
        # Of the present window.
        self._window_from_s, self._shares, self._peak, self._is_bound = monotonic_s(), list[float](), 0, False

    @property
    def running(self) -> int:
        """Requests under way."""
        return self._running

    @property
    def limit(self) -> int:
        """How many may be, at the moment."""
        return int(self._limit)

    def enter(self, budget_s: float) -> Entered:
        """Let a request in that has `budget_s` seconds left.

        Raises:
            Overloaded: it would not be answered in time, or would make others late. Says when to come again.
        """
        if self._running >= self._limits.least:
            if self._running >= self.limit:
                self._is_bound = True
                raise self._refusal(f"it works on {self._running}, as many as are answered in time")
            if self._latency_s > budget_s:
                raise self._refusal(f"answers take {self._latency_s * 1e3:.0f} ms at the moment, and this request has {budget_s * 1e3:.0f}")
        self._running += 1
        self._peak = max(self._peak, self._running)
        return Entered(self._monotonic_s(), budget_s)

    def left(self, entered: Entered, *, is_answered: bool) -> None:
        """Note the end of a request; one that failed for a reason other than time teaches nothing."""
        self._running -= 1
        now_s = self._monotonic_s()
        took_s = now_s - entered.at_s
        share = took_s / max(entered.budget_s, 1e-6)
        if not is_answered and share < _GIVEN_UP_LATE:
            return
        self._latency_s += _LATENCY_WEIGHT * (took_s - self._latency_s)
        self._shares.append(share)
        if len(self._shares) >= _WINDOW_ANSWERS and now_s - self._window_from_s >= _WINDOW_S:
            self._adjust()

    def _adjust(self) -> None:
        high = sorted(self._shares)[math.ceil(_QUANTILE * len(self._shares)) - 1]
        wanted = self._limits.latency_share
        if high > wanted:
            used = min(self._limit, float(self._peak))
            self._limit = max(float(self._limits.least), used * min(max(wanted / high, _MOST_DOWN), _LEAST_DOWN))
        elif self._is_bound:
            self._limit = min(float(self._limits.most), self._limit * _UP_FACTOR + _UP_STEP)
        self._begin_window()

    def _begin_window(self) -> None:
        self._window_from_s, self._shares, self._peak, self._is_bound = self._monotonic_s(), [], self._running, False

    def _refusal(self, why: str) -> Overloaded:
        self.num_refused += 1
        after_s = min(max(self._latency_s, _MIN_RETRY_S), _MAX_RETRY_S)
        return Overloaded(f"the router sheds load: {why}; come again in {after_s * 1e3:.0f} ms", retry_after_s=after_s)
