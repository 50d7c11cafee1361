"""Says now and then how far a long training or reading is, how fast, and how long it will take. Pure; the clock is passed in."""

from __future__ import annotations

from collections.abc import Callable

EVERY_S = 30.0
"""A line at most so often: short trainings say nothing."""


class Progress:
    """One pass over a known number of events."""

    def __init__(
        self, what: str, total: int, *, done: int = 0, clock: Callable[[], float], say: Callable[[str], None], every_s: float = EVERY_S
    ) -> None:
        """`done`: events that were learned before this process began; they do not count for the rate."""
        self._what, self._total, self._begun_at = what, total, done
        self._clock, self._say, self._every_s = clock, say, every_s
        self._started_s = self._said_s = clock()

    def at(self, done: int) -> None:
        """Note that so many events are learned in all."""
        now_s = self._clock()
        if now_s - self._said_s < self._every_s:
            return
        self._said_s = now_s
        rate = (done - self._begun_at) / (now_s - self._started_s)
        left = f", {duration((self._total - done) / rate)} left" if rate > 0 else ""
        self._say(f"{self._what}: {done:,} of {self._total:,} events ({done / self._total:.1%}), {rate:,.0f} events/s{left}")


class RowsRead:
    """Reading a number of rows that is not known beforehand."""

    def __init__(self, what: str, *, clock: Callable[[], float], say: Callable[[str], None], every_s: float = EVERY_S) -> None:
        self._what, self._clock, self._say, self._every_s = what, clock, say, every_s
        self._started_s = self._said_s = clock()

    def at(self, rows: int) -> None:
        """Note that so many rows are read."""
        now_s = self._clock()
        if now_s - self._said_s >= self._every_s:
            self._said_s = now_s
            self._say(f"{self._what}: {rows:,} rows, {self._rate(rows, now_s):,.0f} rows/s")

    def done(self, rows: int, how: str) -> None:
        """Say how long all of them took; `how`: what else there is to say of it."""
        now_s = self._clock()
        self._say(f"{self._what}: {rows:,} rows in {duration(now_s - self._started_s)}, {self._rate(rows, now_s):,.0f} rows/s; {how}")

    def _rate(self, rows: int, now_s: float) -> float:
        return rows / max(now_s - self._started_s, 1e-9)


def duration(seconds: float) -> str:
    """Return a time span in its two largest units: "45 s", "12 min 5 s", "3 h 20 min", "2 d 4 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    at = next(place for place, (_, size) in enumerate(units) if whole >= size)
    (unit, size), (smaller, smaller_size) = units[at], units[at + 1]
    return f"{whole // size} {unit} {whole % size // smaller_size} {smaller}"
