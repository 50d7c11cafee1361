"""The order in which samples of several partitions are learned, as a function of the logs alone.

The joiner writes numbered ticks to every partition of samples.v1. The merge always takes the next records from the partition whose
last tick is lowest (ties: the lower partition number), up to and including that partition's next tick. A micro-batch takes such segments
until it is full, or until every partition is past the tick that its first group stands behind. So there are as many micro-batches as the
samples of a tick fill, however many partitions they are spread over. How the records arrived, in which poll and how fast, changes nothing:
where a batch ends depends on where it begins and on the logs, so a restart repeats the same batches.

A tick's number is the joiner's clock, in milliseconds; joiners of before wrote it in units of their interval, which are far less. Numbers
that begin anew lower (a clock that is put back, a joiner of before) count on by one from the last that was higher, in each partition
alike: a partition whose number stood still would be the lowest for ever, and the others would wait for it.

It knows neither Kafka nor what a group holds.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

Group = TypeVar("Group")

NO_TICK = -1


@dataclass(frozen=True, slots=True)
class PartitionPosition:
    """How far one partition has been consumed; exposures of it below offset `exposures_done` give no new samples behind here.

    `last_tick` is where its last tick stands in the order. `exposures_log` names the incarnation of exposures.v1 whose offset that is; 0:
    not known.
    """

    next_offset: int
    last_tick: int = NO_TICK
    watermark_ms: int = 0
    exposures_done: int = 0
    exposures_log: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    """How far the weights are: one entry per partition, by partition number."""

    partitions: tuple[PartitionPosition, ...]

    @property
    def offsets(self) -> list[int]:
        """Next offset per partition."""
        return [partition.next_offset for partition in self.partitions]

    @property
    def watermark_ms(self) -> int:
        """Every feedback accepted up to here is contained, in all partitions; 0 before every partition has had a tick."""
        return min((partition.watermark_ms for partition in self.partitions), default=0)


@dataclass(frozen=True, slots=True)
class GroupRecord(Generic[Group]):
    """Samples that became known together."""

    offset: int
    group: Group


@dataclass(frozen=True, slots=True)
class TickRecord:
    """The end of a segment."""

    offset: int
    tick: int
    watermark_ms: int
    exposures_done: int = 0
    exposures_log: int = 0


@dataclass(frozen=True, slots=True)
class Segment(Generic[Group]):
    """Groups of one partition between two ticks, in the order of the log.

    Attributes:
        partition: where they stand.
        exposures_done: of the tick before them: exposures of the partition below this offset were done by then; 0: not known.
        groups: at least one.
        watermark_ms: of the ticks before them: feedback of the partition accepted up to then stands before them; 0: not known.
    """

    partition: int
    exposures_done: int
    groups: tuple[Group, ...]
    watermark_ms: int = 0


@dataclass(frozen=True, slots=True)
class Batch(Generic[Group]):
    """What is learned in one step: segments in the order of the merge, at least one."""

    segments: tuple[Segment[Group], ...]

    @property
    def groups(self) -> list[Group]:
        """All groups, in order."""
        return [group for segment in self.segments for group in segment.groups]


@dataclass(frozen=True, slots=True)
class UnusableRecord:
    """A record that was set aside: it moves the offset and counts as nothing. Several in a row wait as one, which spans them."""

    offset: int
    first: int = -1
    """Offset of the first of them; -1: `offset`."""

    def with_next(self, offset: int) -> UnusableRecord:
        """Return what spans this one and the next at `offset`."""
        return UnusableRecord(offset, self.offset if self.first < 0 else self.first)


class TickMerge(Generic[Group]):
    """Turns records, pushed per partition in offset order, into micro-batches.

    `position` is where a checkpoint cuts: it covers exactly the batches that `next_batch` has returned.
    """

    def __init__(self, position: Position, *, batch_groups: int) -> None:
        if batch_groups < 1:
            raise ValueError(f"batch_groups must be at least 1, not {batch_groups}")
        self._partitions = list(position.partitions)
        self._batch_groups = batch_groups
        self._buffers: list[deque[GroupRecord[Group] | TickRecord | UnusableRecord]] = [deque() for _ in self._partitions]
        # The batch that is being filled, and the places behind it.
        self._open: list[Segment[Group]] = []
        self._num_open = 0
        self._open_behind = NO_TICK
        self._ahead = list(self._partitions)
        self._order = self._in_order()

    @property
    def position(self) -> Position:
        """What the batches returned so far contain."""
        return Position(tuple(self._partitions))

    def buffered(self, partition: int) -> int:
        """Return how many records of the partition wait; unusable ones in a row, which may be without end, are one."""
        return len(self._buffers[partition])

    def push(self, partition: int, record: GroupRecord[Group] | TickRecord | UnusableRecord) -> None:
        """Add the partition's next record. Offsets may skip (compaction, transaction markers) but never go back.

        Raises:
            ValueError: the offset was pushed or consumed before.
        """
        buffer = self._buffers[partition]
        floor = buffer[-1].offset + 1 if buffer else self._ahead[partition].next_offset
        if record.offset < floor:
            raise ValueError(f"partition {partition}: offset {record.offset} pushed, but {floor} is the next one")
        last = buffer[-1] if buffer else None
        if isinstance(record, UnusableRecord) and isinstance(last, UnusableRecord):
            buffer[-1] = last.with_next(record.offset)
        else:
            buffer.append(record)

    def next_batch(self) -> Batch[Group] | None:
        """Return the next micro-batch (1 to batch_groups groups), or None until more records are pushed."""
        while True:
            last_tick, partition = self._order[0]
            if self._open and (self._num_open == self._batch_groups or last_tick > self._open_behind):
                return self._close()
            cut = self._end_of_segment(partition, self._batch_groups - self._num_open)
            if cut == 0:
                return None
            segment = self._consume(partition, cut)
            heapq.heapreplace(self._order, (self._ahead[partition].last_tick, partition))
            if segment.groups:
                self._open_behind = self._open_behind if self._open else last_tick
                self._open.append(segment)
                self._num_open += len(segment.groups)
            elif not self._open:
                self._partitions[partition] = self._ahead[partition]

    def pass_over(self, ends: Sequence[int]) -> list[Segment[Group]]:
        """Consume the buffered records below `ends` (one offset per partition), one partition after the other; return their groups."""
        segments = self._open
        for partition, end in enumerate(ends):
            buffer = self._buffers[partition]
            while buffer and _first_offset(buffer[0]) < end:
                cut = next((at + 1 for at, record in enumerate(buffer) if isinstance(record, TickRecord)), len(buffer))
                below = sum(record.offset < end for record in itertools.islice(buffer, cut))
                if below == 0:  # unusable ones on both sides of the end
                    self._ahead[partition] = replace(self._ahead[partition], next_offset=end)
                    break
                segments.append(self._consume(partition, below))
        self._order = self._in_order()
        self._close()
        return [segment for segment in segments if segment.groups]

    def _in_order(self) -> list[tuple[int, int]]:
        """Return a heap of (last tick, partition)."""
        order = [(place.last_tick, partition) for partition, place in enumerate(self._ahead)]
        heapq.heapify(order)
        return order

    def _close(self) -> Batch[Group]:
        batch = Batch(tuple(self._open))
        self._open, self._num_open = [], 0
        self._partitions = list(self._ahead)
        return batch

    def _end_of_segment(self, partition: int, room: int) -> int:
        """Return how many buffered records to take: through the next tick, or to the last group that fits into `room`; 0: wait."""
        num_groups = 0
        for index, record in enumerate(self._buffers[partition]):
            if isinstance(record, TickRecord):
                return index + 1
            if isinstance(record, GroupRecord):
                num_groups += 1
                if num_groups == room:
                    return index + 1
        return 0

    def _consume(self, partition: int, num_records: int) -> Segment[Group]:
        buffer, groups = self._buffers[partition], []
        before = place = self._ahead[partition]
        for _ in range(num_records):
            record = buffer.popleft()
            if isinstance(record, GroupRecord):
                groups.append(record.group)
            elif isinstance(record, TickRecord):
                place = _after_tick(place, record)
            place = replace(place, next_offset=record.offset + 1)
        self._ahead[partition] = place
        return Segment(partition, before.exposures_done, tuple(groups), before.watermark_ms)


def _first_offset(record: GroupRecord[Group] | TickRecord | UnusableRecord) -> int:
    return record.first if isinstance(record, UnusableRecord) and record.first >= 0 else record.offset


def _after_tick(place: PartitionPosition, record: TickRecord) -> PartitionPosition:
    """A joiner whose clock stepped back repeats old numbers, and a tick of one that lost its partition may land behind its successor's
    first: the order goes on all the same, and no promise goes back. Which exposures are done goes back when a new tick says that
    exposures.v1 began anew."""
    is_other = record.exposures_log != place.exposures_log and 0 not in (record.exposures_log, place.exposures_log)
    began_anew = is_other and record.tick > place.last_tick
    exposures_done = place.exposures_done if is_other else max(place.exposures_done, record.exposures_done)
    return replace(
        place,
        last_tick=max(place.last_tick + 1, record.tick),
        watermark_ms=max(place.watermark_ms, record.watermark_ms),
        exposures_done=record.exposures_done if began_anew else exposures_done,
        exposures_log=record.exposures_log if began_anew or not place.exposures_log else place.exposures_log,
    )


def start_position(offsets: Sequence[int]) -> Position:
    """Return the position of a learner that has seen nothing, reading from `offsets` (one per partition)."""
    return Position(tuple(PartitionPosition(offset) for offset in offsets))
