"""How far one topic of a partition has been read, in offsets and in event time. Pure: no I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class LogPosition:
    """How far one topic of a partition has been read. `end` is the log's end as last asked for; None when the broker did not say."""

    next_offset: int
    max_time_ms: int = 0
    end: int | None = None

    def advance(self, offset: int) -> bool:
        """Step over the record at `offset`; False when it was read before."""
        if offset < self.next_offset:
            return False
        self.next_offset = offset + 1
        return True

    def pass_over(self, offset: int) -> None:
        """Take what stands below `offset` for read."""
        self.next_offset = max(self.next_offset, offset)

    def reach(self, time_ms: int) -> None:
        """Note the event time of a record that was read."""
        self.max_time_ms = max(self.max_time_ms, time_ms)

    @property
    def is_caught_up(self) -> bool:
        """Whether everything below the known end has been read."""
        return self.end is not None and self.next_offset >= self.end

    def watermark_ms(self, now_ms: int, allowance_ms: int) -> int:
        """Return the time up to which events have been read. A sender whose clock runs ahead cannot push it past the wall clock."""
        return (now_ms if self.is_caught_up else min(self.max_time_ms, now_ms)) - allowance_ms
