"""Feedback that was read before what it is about, and waits for it. Pure: no I/O, no clock."""

from __future__ import annotations

from services.common.events.feedback import Feedback
from streams.partitioned.records import Record

# What one costs in memory beside its record's value: measured with tracemalloc, headers of CloudEvents and a trace included.
_OVERHEAD_BYTES = 1_800


class WaitingFeedback:
    """The feedback of one partition that waits, by offset and by request. Add it in offset order."""

    def __init__(self) -> None:
        """Nothing waits."""
        self._cost_bytes = 0
        self._waiting: dict[int, tuple[Feedback, Record]] = {}  # by offset, in offset order
        self._offsets_of: dict[str, list[int]] = {}  # by request id

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def cost_bytes(self) -> int:
        """Estimate of the memory that all of it takes."""
        return self._cost_bytes

    def first_offset(self, *, default: int) -> int:
        """Return the lowest offset that waits, or `default` when nothing does."""
        return next(iter(self._waiting), default)

    def oldest_ms(self, *, after_ms: int, default: int) -> int:
        """Return the earliest time after `after_ms` at which any of it was accepted, or `default` when nothing of that waits."""
        times = (feedback.accepted_at_ms for feedback, _ in self._waiting.values())
        return min((at for at in times if at > after_ms), default=default)

    def add(self, feedback: Feedback, record: Record) -> None:
        """Let one wait."""
        self._waiting[record.offset] = (feedback, record)
        self._offsets_of.setdefault(feedback.request_id, []).append(record.offset)
        self._cost_bytes += _cost_of(record)

    def take_of(self, request_id: str) -> list[tuple[Feedback, Record]]:
        """Remove and return what waits for a request, in offset order."""
        found = [self._waiting.pop(offset) for offset in self._offsets_of.pop(request_id, ())]
        self._cost_bytes -= sum(_cost_of(record) for _, record in found)
        return found

    def take_first(self) -> tuple[Feedback, Record]:
        """Remove and return the one with the lowest offset. Something must be waiting."""
        return self._take(next(iter(self._waiting)))

    def take_accepted_until(self, time_ms: int) -> list[tuple[Feedback, Record]]:
        """Remove and return what was accepted up to `time_ms`, in offset order."""
        overdue = [offset for offset, (feedback, _) in self._waiting.items() if feedback.accepted_at_ms <= time_ms]
        return [self._take(offset) for offset in overdue]

    def _take(self, offset: int) -> tuple[Feedback, Record]:
        feedback, record = self._waiting.pop(offset)
        offsets = self._offsets_of[feedback.request_id]
        offsets.remove(offset)
        if not offsets:
            del self._offsets_of[feedback.request_id]
        self._cost_bytes -= _cost_of(record)
        return feedback, record


def _cost_of(record: Record) -> int:
    return _OVERHEAD_BYTES + len(record.value or b"")
