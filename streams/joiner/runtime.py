"""One partition at work: takes records in, writes what the join emits in order, acknowledges what is done.

Everything that the join emits, ticks included, goes through one outbox and is sent in its order. A tick is sent after everything
before it has been acknowledged by the broker, and only then are the records acknowledged that the tick's cut releases.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from opentelemetry.trace import SpanKind

from services.common.events import envelope, topics
from services.common.events.dead_letters import dead_letter_headers
from services.common.events.envelope import MalformedRecord
from services.common.platform.telemetry import Telemetry, current_traceparent
from streams.joiner import codec
from streams.joiner.core import JoinerPartition
from streams.joiner.model import Cut, DeadLetter, Emission, Forward, Record, SampleGroup
from streams.reading_order import ReadingOrder

SOURCE = "/tunemesh/joiner"
_MAX_OUTBOX = 5_000
_SAMPLE_TYPE = "tunemesh.samples.v1.SampleRecord"


def wall_clock_ms() -> int:
    """Return Unix milliseconds."""
    return time.time_ns() // 1_000_000


class Sender(Protocol):
    """What the runtime needs of a producer (streams.joiner.kafka_output.OrderedProducer)."""

    async def send(
        self, topic: str, *, partition: int | None, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> asyncio.Future[object]:
        """Queue one record; the future is its acknowledgement."""


class PartitionRuntime:
    """The join of one partition with its outbox. `close` it when the partition is taken away."""

    def __init__(
        self,
        partition: int,
        joiner: JoinerPartition,
        schema_hash: str,
        sender: Sender,
        telemetry: Telemetry,
        order: ReadingOrder,
        ack: Callable[[Any], object],
    ) -> None:
        """`order` is the worker's; `ack` acknowledges one message of the stream."""
        self.partition = partition
        self.joiner = joiner
        self.is_closed = False
        self._schema_hash = schema_hash
        self._sender = sender
        self._telemetry = telemetry
        self._order = order
        self._ack = ack
        self._outbox: deque[Emission | Cut] = deque()
        self._has_output = asyncio.Event()
        self._num_cuts = 0
        self._in_flight: list[asyncio.Future[object]] = []
        self._exposures: deque[Any] = deque()
        self._feedback: deque[Any] = deque()
        self._reported: Counter[str] = Counter()

    def close(self) -> None:
        """Take nothing more in."""
        self.is_closed = True

    async def take_exposure(self, message: Any) -> None:
        """Take in one message of exposures.v1; waits while the join or the outbox has no room."""
        await self._order.wait(has_room=self._has_room, may_read=lambda: self.is_closed or self.joiner.may_read_exposures())
        if self.is_closed:
            return
        record = _record_of(message)
        try:
            exposure = codec.read_exposure(record, self._schema_hash, wall_clock_ms())
        except MalformedRecord as error:
            self._put(self.joiner.on_malformed_exposure(record, str(error)))
        else:
            self._put(self.joiner.on_exposure(exposure, record))
        _keep(self._exposures, message)

    async def take_feedback(self, message: Any) -> None:
        """Take in one message of feedback.v1; waits while the join or the outbox has no room."""
        await self._order.wait(has_room=self._has_room, may_read=lambda: self.is_closed or self.joiner.may_read_feedback())
        if self.is_closed:
            return
        record = _record_of(message)
        try:
            feedback = codec.read_feedback(record, wall_clock_ms())
        except MalformedRecord as error:
            self._put(self.joiner.on_malformed_feedback(record, str(error)))
        else:
            self._put(self.joiner.on_feedback(feedback, record))
        _keep(self._feedback, message)

    def _has_room(self) -> bool:
        return self.is_closed or len(self._outbox) < _MAX_OUTBOX

    def tick(self, now_ms: int, *, exposures_end: int | None, feedback_end: int | None) -> None:
        """Let time pass. While the previous tick still waits to be written, this one is left out."""
        if self._num_cuts:
            return
        outcome = self.joiner.on_tick(now_ms, exposures_end=exposures_end, feedback_end=feedback_end)
        self._num_cuts += 1
        self._put([*outcome.emissions, outcome.cut])

    def new_counts(self) -> Counter[str]:
        """Return what happened since the last call, by event."""
        fresh = self.joiner.counts - self._reported
        self._reported = self.joiner.counts.copy()
        return fresh

    def _put(self, output: Sequence[Emission | Cut]) -> None:
        if output:
            self._outbox.extend(output)
            self._has_output.set()

    async def write(self) -> None:
        """Write the outbox for ever. A send that fails for good raises: what was not written is emitted again by the next process."""
        while True:
            await self._has_output.wait()
            self._has_output.clear()
            while self._outbox:
                item = self._outbox.popleft()
                if isinstance(item, Cut):
                    await self._write_cut(item)
                else:
                    self._in_flight.append(await self._send(item))

    async def _write_cut(self, cut: Cut) -> None:
        await asyncio.gather(*self._in_flight)
        self._in_flight.clear()
        headers = envelope.headers_for(_SAMPLE_TYPE, SOURCE, event_id=f"tick/{self.partition}/{cut.tick}")
        await (
            await self._sender.send(topics.SAMPLES.name, partition=self.partition, key=None, value=codec.write_tick(cut), headers=headers)
        )
        self._num_cuts -= 1
        for messages, end in ((self._exposures, cut.exposures_committable), (self._feedback, cut.feedback_committable)):
            while messages and messages[0].offset < end:
                self._ack(messages.popleft())

    async def _send(self, emission: Emission) -> asyncio.Future[object]:
        if isinstance(emission, SampleGroup):
            return await self._send_group(emission)
        if isinstance(emission, DeadLetter):
            return await self._send_dead_letter(emission)
        return await self._forward(emission)

    async def _send_group(self, group: SampleGroup) -> asyncio.Future[object]:
        traceparent = group.traceparent
        if group.samples[-1].feedback is not None:
            with self._telemetry.span("joiner.join", parent=traceparent, kind=SpanKind.CONSUMER, attributes={"partition": self.partition}):
                traceparent = current_traceparent()
        identity = f"{group.samples[-1].sample_id:016x}"
        headers = envelope.headers_for(_SAMPLE_TYPE, SOURCE, event_id=identity, traceparent=traceparent)
        key, value = group.exposure.user_id.encode(), codec.write_group(group)
        return await self._sender.send(topics.SAMPLES.name, partition=self.partition, key=key, value=value, headers=headers)

    async def _send_dead_letter(self, letter: DeadLetter) -> asyncio.Future[object]:
        message = codec.write_dead_letter(letter, wall_clock_ms())
        headers = dead_letter_headers(message, SOURCE)
        name = f"{letter.record.topic}.dlq.v1"
        return await self._sender.send(name, partition=None, key=letter.record.key, value=message.SerializeToString(), headers=headers)

    async def _forward(self, forward: Forward) -> asyncio.Future[object]:
        record = forward.record
        return await self._sender.send(
            record.topic, partition=forward.partition, key=record.key, value=record.value, headers=record.headers
        )


def _record_of(message: Any) -> Record:
    return Record(message.topic, message.partition, message.offset, message.key, message.value, tuple(message.headers or ()))


def _keep(messages: deque[Any], message: Any) -> None:
    """Keep a message until it may be acknowledged, without its content: the join keeps what it needs of it."""
    message.value = None
    message.headers = None
    messages.append(message)
