"""When a delta is due: at every interval, and sooner when there is news and nothing else to do. Pure: no clock."""

from __future__ import annotations

from dataclasses import dataclass

_SHARE_OF_TIME = 10


@dataclass(slots=True)
class PublishPace:
    """The pace of one worker; times are seconds of a monotonic clock.

    Attributes:
        interval_s: a delta, or a heartbeat, at least this often.
        gap_s: the least time from one delta to the next before the interval is over.
    """

    interval_s: float
    gap_s: float
    _published_at: float = 0.0
    _took_s: float = 0.0

    def begin(self, now: float) -> None:
        """Count from now on."""
        self._published_at = now

    def published(self, now: float, took_s: float) -> None:
        """Note that a delta was started at `now` and how long its making took: early ones take at most a tenth of the time."""
        self._published_at, self._took_s = now, took_s

    def wait_s(self, now: float, *, has_news: bool) -> float:
        """Return how long until a delta is due if nothing else is learned; 0: now."""
        gap_s = min(max(self.gap_s, _SHARE_OF_TIME * self._took_s), self.interval_s)
        return max(self._published_at + (gap_s if has_news else self.interval_s) - now, 0.0)
