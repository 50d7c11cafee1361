"""One partition of a stream at work: takes records in, writes what the stream makes of them in order, acknowledges what is done.

Everything that the stream emits goes through one outbox. A cut takes effect only after the broker has acknowledged everything before
it; then the records are acknowledged that the cut releases. What is not acknowledged when a process dies is read again by the next one.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from services.common.events import dead_letter_reasons as reasons
from services.common.events.envelope import MalformedRecord
from services.common.events.topics import Topic
from services.common.platform.clock import wall_ms
from services.common.platform.errors import Unavailable
from streams.partitioned.dead_letters import write_dead_letter
from streams.partitioned.intake import Intake
from streams.partitioned.output import Output
from streams.partitioned.reading_order import ReadingOrder
from streams.partitioned.records import DeadLetter, Forward, Outgoing, Record
from streams.strikes import Strikes

_MAX_BATCH = 200
# A full disk or a server that is down is no record's fault.
_OUTAGES = (Unavailable,)


ValueT = TypeVar("ValueT")
EmissionT = TypeVar("EmissionT")
CutT = TypeVar("CutT")
# What a partition emits: values of the stream's own kind, and what the runtime writes for every stream.
Emitted: TypeAlias = EmissionT | DeadLetter | Forward


@dataclass(frozen=True, slots=True)
class Input(Generic[ValueT, EmissionT]):
    """One of the two topics of a stream.

    Attributes:
        topic: what is read.
        read: returns the value in a record, given the wall clock (Unix milliseconds), or raises MalformedRecord.
        take: takes a value in with its record, and returns what is to be written.
    """

    topic: Topic
    read: Callable[[Record, int], ValueT]
    take: Callable[[ValueT, Record], Sequence[Emitted[EmissionT]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition(Generic[EmissionT, CutT]):
    """What a stream does with one partition.

    Attributes:
        intake: shared with the join.
        subjects: the topic of what feedback is about.
        feedback: the topic of the feedback.
        tick: lets time pass, and returns what is to be written and then the cut. It gets the wall clock (Unix milliseconds), and where
            the two topics end, asked for at or after that time; None when the broker did not say.
        committable: per topic: records below this offset are never needed again, once everything before the cut is acknowledged.
        outgoing: returns the record of an emission.
        mark: returns the record that tells others of a cut, written behind everything before it; None when nobody is told.
        wants_tick: whether a tick at this wall clock (Unix milliseconds) would tell somebody something that they wait for.
    """

    intake: Intake
    subjects: Input[Any, EmissionT]
    feedback: Input[Any, EmissionT]
    tick: Callable[[int, tuple[int | None, int | None]], tuple[Sequence[Emitted[EmissionT]], CutT]]
    committable: Callable[[CutT], tuple[int, int]]
    outgoing: Callable[[EmissionT], Outgoing]
    mark: Callable[[CutT], Outgoing | None] = lambda _: None
    wants_tick: Callable[[int], bool] = lambda _: False


@dataclass(frozen=True, slots=True)
class _Pending(Generic[CutT]):
    """A cut in the outbox."""

    cut: CutT


@dataclass(frozen=True, slots=True)
class _Side(Generic[EmissionT]):
    """An input at work, with the messages that were taken in and may not be acknowledged yet."""

    input: Input[Any, EmissionT]
    may_read: Callable[[], bool]
    on_unusable: Callable[[Record, str, str], Sequence[DeadLetter]]
    taken: deque[Any] = field(default_factory=deque)

    def take(self, record: Record, now_ms: int) -> Sequence[Emitted[EmissionT]]:
        """Take in a record, whether it can be read or not, and return what is to be written."""
        try:
            value = self.input.read(record, now_ms)
        except MalformedRecord as error:
            return self.on_unusable(record, reasons.MALFORMED, str(error))
        return self.input.take(value, record)


class PartitionRuntime(Generic[EmissionT, CutT]):
    """A partition with its outbox. `close` it when it is taken away."""

    def __init__(
        self,
        partition: Partition[EmissionT, CutT],
        output: Output,
        order: ReadingOrder,
        ack: Callable[[Any], object],
        strikes: Strikes,
        *,
        source: str,
        max_outbox: int,
    ) -> None:
        """Starts nothing: run `write` as a task.

        Args:
            partition: what the stream does.
            output: where it writes to.
            order: the worker's.
            ack: acknowledges one message of Faust's.
            strikes: the worker's.
            source: of the stream, for the headers of dead letters.
            max_outbox: while so many emissions wait to be written, nothing more is taken in.
        """
        self.is_closed = False
        self._partition = partition
        self._output = output
        self._order = order
        self._ack = ack
        self._strikes = strikes
        self._source = source
        self._max_outbox = max_outbox
        intake = partition.intake
        self._intake = intake
        self._sides = {
            partition.subjects.topic.name: _Side(partition.subjects, intake.may_read_subjects, intake.on_unusable_subject),
            partition.feedback.topic.name: _Side(partition.feedback, intake.may_read_feedback, intake.on_unusable_feedback),
        }
        self._outbox: deque[Outgoing | Emitted[EmissionT] | _Pending[CutT]] = deque()
        self._has_output = asyncio.Event()
        self._has_cut = False
        self._num_since_cut = 0
        self._reported: Counter[str] = Counter()

    def close(self) -> None:
        """Take nothing more in."""
        self.is_closed = True

    async def take(self, message: Any) -> None:
        """Take in one message of either topic; waits while the stream or the outbox has no room."""
        side = self._sides[message.topic]
        await self._order.wait(has_room=self._has_room, may_read=lambda: self.is_closed or side.may_read())
        if self.is_closed:
            return
        try:
            self._take_in(side, _record_of(message))
        except Exception:
            # Faust goes on behind the record until the process has ended. A tick of that time would say that the record is done.
            self.close()
            raise
        # Kept until it may be acknowledged, without its content: the join has what it needs of it.
        message.value = None
        message.headers = None
        side.taken.append(message)

    def _take_in(self, side: _Side[EmissionT], record: Record) -> None:
        condemned = self._strikes.condemned(record)
        if condemned:
            self._put(side.on_unusable(record, reasons.KILLED_WORKER, condemned))
            return
        with self._strikes.on_trial([record], unless=_OUTAGES), self._strikes.working_on(record, unless=_OUTAGES):
            # What is made of a record is made while it is known which one it was.
            self._put([self._outgoing(emission) for emission in side.take(record, wall_ms())])

    def _has_room(self) -> bool:
        return self.is_closed or len(self._outbox) < self._max_outbox

    @property
    def may_tick(self) -> bool:
        """False while a tick would be left out."""
        return not self._has_cut

    @property
    def num_since_tick(self) -> int:
        """Emissions since the last tick."""
        return self._num_since_cut

    def wants_tick(self, now_ms: int) -> bool:
        """Return whether somebody waits for a tick at `now_ms`."""
        return not self.is_closed and self._partition.wants_tick(now_ms)

    def tick(self, now_ms: int, ends: tuple[int | None, int | None]) -> None:
        """Let time pass. While the previous cut still waits to take effect, this tick is left out."""
        if self._has_cut:
            return
        emissions, cut = self._partition.tick(now_ms, ends)
        self._has_cut = True
        self._put([*emissions, _Pending(cut)])
        self._num_since_cut = 0

    def new_counts(self) -> Counter[str]:
        """Return what happened since the last call, by event."""
        fresh = self._intake.counts - self._reported
        self._reported = self._intake.counts.copy()
        return fresh

    def _put(self, output: Sequence[Outgoing | Emitted[EmissionT] | _Pending[CutT]]) -> None:
        if output:
            self._outbox.extend(output)
            self._num_since_cut += len(output)
            self._has_output.set()

    async def write(self) -> None:
        """Write the outbox for ever. What the output raises ends it: the next process emits again what was not written."""
        while True:
            await self._has_output.wait()
            self._has_output.clear()
            while self._outbox:
                await self._output.send(self._next_batch())
                if self._outbox and isinstance(pending := self._outbox[0], _Pending):
                    self._outbox.popleft()
                    await self._settle(pending.cut)

    def _next_batch(self) -> list[Outgoing]:
        """Take emissions up to the next cut out of the outbox."""
        batch: list[Outgoing] = []
        while self._outbox and len(batch) < _MAX_BATCH:
            emission = self._outbox[0]
            if isinstance(emission, _Pending):
                break
            batch.append(emission if isinstance(emission, Outgoing) else self._outgoing(emission))
            self._outbox.popleft()
        return batch

    def _outgoing(self, emission: Emitted[EmissionT]) -> Outgoing:
        if isinstance(emission, DeadLetter):
            topic = self._sides[emission.record.topic].input.topic
            return write_dead_letter(emission, topic=topic.dlq, source=self._source, now_ms=wall_ms())
        if isinstance(emission, Forward):
            record = emission.record
            return Outgoing(record.topic, record.key, record.value, record.headers, emission.partition)
        return self._partition.outgoing(emission)

    async def _settle(self, cut: CutT) -> None:
        """Let a cut take effect: everything before it is acknowledged."""
        mark = self._partition.mark(cut)
        if mark is not None:
            await self._output.send([mark])
        self._has_cut = False
        for side, end in zip(self._sides.values(), self._partition.committable(cut), strict=True):
            while side.taken and side.taken[0].offset < end:
                self._ack(side.taken.popleft())


def _record_of(message: Any) -> Record:
    return Record(message.topic, message.partition, message.offset, message.key, message.value, tuple(message.headers or ()))
