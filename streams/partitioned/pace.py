"""When the ticks of a worker come: at every interval of the clock, and sooner when one is worth it. Pure: no I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass

# A tick ends a micro-batch of the trainer, which has room for 16 groups: so many records, written or to be written, are worth another gap.
_RECORDS_PER_GAP = 16
_SHARE_OF_TIME = 10


@dataclass(slots=True)
class TickPace:
    """The pace of one worker.

    All times are Unix milliseconds of the wall clock, and ticks come at multiples of `gap_ms` only: workers that tick at about the same
    moment so give it the same number, as all partitions of one worker do.

    Attributes:
        interval_ms: a tick comes whenever this has passed, at multiples of it.
        gap_ms: the least time between two ticks, at most `interval_ms`.
    """

    interval_ms: int
    gap_ms: int
    _ticked_ms: int = 0
    _took_ms: float = 0.0

    def __post_init__(self) -> None:
        self.gap_ms = min(self.gap_ms, self.interval_ms)

    def pause_ms(self, now_ms: int) -> int:
        """Return how long to sleep until there may be a tick: to one millisecond into the next gap, so that a timer that fires early does
        not repeat a tick's number."""
        return self.gap_ms - now_ms % self.gap_ms + 1

    def is_due(self, now_ms: int, *, is_wanted: bool, num_records: int) -> bool:
        """Return whether to tick now.

        Args:
            now_ms: now.
            is_wanted: somebody waits for this tick.
            num_records: written since the last tick, and those that this tick itself would write. The more there are, the longer the gap: a
                worker with much to write ticks at the interval only, and the trainer's micro-batches are full.
        """
        if now_ms // self.interval_ms != self._ticked_ms // self.interval_ms:
            return True
        # Counted in whole gaps, so that a timer that fires some milliseconds late does not shorten the next one.
        passed_ms = (now_ms // self.gap_ms - self._ticked_ms // self.gap_ms) * self.gap_ms
        gap_ms = max(self.gap_ms * (1 + num_records // _RECORDS_PER_GAP), _SHARE_OF_TIME * self._took_ms)
        return is_wanted and passed_ms >= gap_ms

    def ticked(self, now_ms: int, took_ms: float) -> None:
        """Note a tick and how long it took (the broker is asked where its logs end): early ticks take at most a tenth of the time."""
        self._ticked_ms, self._took_ms = now_ms, took_ms
