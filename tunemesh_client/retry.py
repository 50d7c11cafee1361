"""When a call is tried again: jittered exponential pauses within the call's deadline. Pure: the clock and the randomness are passed in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tunemesh_client.errors import TunemeshError

# Time that is not worth an attempt: a hop and the ranker take several milliseconds.
_MIN_ATTEMPT_S = 0.001
_MAX_DOUBLINGS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a failed call is repeated when a retry helps. A repeat carries the same idempotency_key or feedback_id."""

    retries: int | None = None
    """Most repeats of one call. 0: none. None: as many as fit the deadline."""
    first_pause_s: float = 0.1
    """Longest pause before the first repeat; each later one may be twice as long. The actual pause is between half of it and all of it."""
    max_pause_s: float = 2.0
    """No pause is longer, unless the server asks for more."""
    attempt_timeout_s: float | None = None
    """Longest time for one attempt; the next one follows. None: an attempt may take all the time that is left."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the field, for a value that makes no sense."""
        if self.retries is not None and self.retries < 0:
            raise ValueError(f"retries: {self.retries} is negative; use 0 for none, None for as many as fit the deadline")
        if not 0 < self.first_pause_s <= self.max_pause_s < math.inf:
            raise ValueError(f"first_pause_s: {self.first_pause_s} must be above 0 and at most max_pause_s ({self.max_pause_s})")
        if self.attempt_timeout_s is not None and not self.attempt_timeout_s > 0:
            raise ValueError(f"attempt_timeout_s: {self.attempt_timeout_s} must be above 0, or None")


UNTIL_THE_DEADLINE = RetryPolicy()


class Attempts:
    """The attempts of one call: how long the next may take, and whether and when there is another after a failure."""

    __slots__ = ("_deadline_s", "_policy", "number")

    def __init__(self, policy: RetryPolicy, timeout_s: float, now_s: float) -> None:
        """All attempts together end at `now_s + timeout_s`, on the clock that the other methods are given."""
        self._policy, self._deadline_s = policy, now_s + timeout_s
        self.number = 0

    def begin(self, now_s: float) -> float:
        """Count an attempt and return how many seconds it may take."""
        self.number += 1
        left_s = max(self._deadline_s - now_s, _MIN_ATTEMPT_S)
        limit_s = self._policy.attempt_timeout_s
        return left_s if limit_s is None or limit_s > left_s else limit_s

    def pause_s(self, error: TunemeshError, now_s: float, uniform: Callable[[float, float], float]) -> float | None:
        """Return how many seconds to wait before the next attempt; None when there is none: the error is the answer."""
        policy = self._policy
        if not error.retry_helps or (policy.retries is not None and self.number > policy.retries):
            return None
        longest_s = min(policy.first_pause_s * 2.0 ** min(self.number - 1, _MAX_DOUBLINGS), policy.max_pause_s)
        pause_s = max(longest_s * uniform(0.5, 1.0), error.retry_after_s or 0.0)
        return None if now_s + pause_s + _MIN_ATTEMPT_S >= self._deadline_s else pause_s
