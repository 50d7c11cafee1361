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
        self._since_ms: dict[int, int] = {}  # by offset: the clock when it was met first
        self._unmet: list[int] = []

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
        self._unmet.append(record.offset)
        self._cost_bytes += _cost_of(record)

    def take_of(self, request_id: str) -> list[tuple[Feedback, Record]]:
        """Remove and return what waits for a request, in offset order."""
        found = [self._removed(offset) for offset in self._offsets_of.pop(request_id, ())]
        self._cost_bytes -= sum(_cost_of(record) for _, record in found)
        return found

    def take_first(self) -> tuple[Feedback, Record]:
        """Remove and return the one with the lowest offset. Something must be waiting."""
        return self._take(next(iter(self._waiting)))

    def meet(self, now_ms: int) -> None:
        """Count how long feedback waits from now on that was added since the last call."""
        self._since_ms |= {offset: now_ms for offset in self._unmet if offset in self._waiting}
        self._unmet.clear()

    def take_overdue(self, *, accepted_until_ms: int, met_until_ms: int) -> list[tuple[Feedback, Record]]:
        """Remove and return, in offset order, what was accepted up to one time and has been waiting here since another one."""
        overdue = [
            offset
            for offset, (feedback, _) in self._waiting.items()
            if feedback.accepted_at_ms <= accepted_until_ms and self._since_ms.get(offset, met_until_ms + 1) <= met_until_ms
        ]
        return [self._take(offset) for offset in overdue]

    def _removed(self, offset: int) -> tuple[Feedback, Record]:
        self._since_ms.pop(offset, None)
        return self._waiting.pop(offset)

    def _take(self, offset: int) -> tuple[Feedback, Record]:
        feedback, record = self._removed(offset)
        offsets = self._offsets_of[feedback.request_id]
        offsets.remove(offset)
        if not offsets:
            del self._offsets_of[feedback.request_id]
        self._cost_bytes -= _cost_of(record)
        return feedback, record


def _cost_of(record: Record) -> int:
    return _OVERHEAD_BYTES + len(record.value or b"")
