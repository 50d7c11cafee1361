"""One partition at work: takes records in, writes what the curation emits in order, acknowledges what is done.

Everything goes through one outbox. A cut takes effect only after everything before it has been acknowledged by the broker; while the
broker is away the outbox waits, and what may have been written is written again: examples are told apart by their id, dead letters by
their source.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.trace import SpanKind

from services.common.events import envelope
from services.common.events.dead_letters import dead_letter_headers
from services.common.events.envelope import MalformedRecord
from services.common.events.topics import LLM_EXAMPLES
from services.common.platform.kafka_async import Record as Produced
from services.common.platform.telemetry import Telemetry, current_traceparent
from streams.curator import codec
from streams.curator.core import CuratorPartition
from streams.curator.model import Cut, Emission, Example, Record
from streams.reading_order import ReadingOrder
from streams.worker import Sender, send_until_acknowledged

SOURCE = "/tunemesh/curator"
_MAX_OUTBOX = 2_000
_MAX_BATCH = 200


def wall_clock_ms() -> int:
    """Return Unix milliseconds."""
    return time.time_ns() // 1_000_000


class PartitionRuntime:
    """The curation of one partition with its outbox. `close` it when the partition is taken away."""

    def __init__(
        self, core: CuratorPartition, sender: Sender, telemetry: Telemetry, order: ReadingOrder, ack: Callable[[Any], object]
    ) -> None:
        """`order` is the worker's; `ack` acknowledges one message of the stream."""
        self.core = core
        self.is_closed = False
        self._sender = sender
        self._telemetry = telemetry
        self._order = order
        self._ack = ack
        self._outbox: deque[Produced | Cut] = deque()
        self._has_output = asyncio.Event()
        self._num_cuts = 0
        self._generations: deque[Any] = deque()
        self._feedback: deque[Any] = deque()
        self._reported: Counter[str] = Counter()

    def close(self) -> None:
        """Take nothing more in."""
        self.is_closed = True

    async def take_generation(self, message: Any) -> None:
        """Take in one message of generations.v1; waits while there is no room."""
        await self._order.wait(has_room=self._has_room, may_read=lambda: self.is_closed or self.core.may_read_generations())
        if self.is_closed:
            return
        record = _record_of(message)
        try:
            generation = codec.read_generation(record, wall_clock_ms())
        except MalformedRecord as error:
            self._put(self.core.on_malformed_generation(record, str(error)))
        else:
            self._put(self.core.on_generation(generation, record))
        _keep(self._generations, message)

    async def take_feedback(self, message: Any) -> None:
        """Take in one message of feedback.v1; waits while there is no room."""
        await self._order.wait(has_room=self._has_room, may_read=lambda: self.is_closed or self.core.may_read_feedback())
        if self.is_closed:
            return
        record = _record_of(message)
        try:
            feedback = codec.read_feedback(record, wall_clock_ms())
        except MalformedRecord as error:
            self._put(self.core.on_malformed_feedback(record, str(error)))
        else:
            if feedback is None:
                self.core.on_unreadable_feedback(record.offset)
            else:
                self._put(self.core.on_feedback(feedback, record))
        _keep(self._feedback, message)

    def _has_room(self) -> bool:
        return self.is_closed or len(self._outbox) < _MAX_OUTBOX

    def tick(self, now_ms: int, *, generations_end: int | None, feedback_end: int | None) -> None:
        """Let time pass. While the previous tick still waits for what is before it, this one is left out."""
        if self._num_cuts:
            return
        emissions, cut = self.core.on_tick(now_ms, generations_end=generations_end, feedback_end=feedback_end)
        self._put(emissions)
        self._num_cuts += 1
        self._outbox.append(cut)
        self._has_output.set()

    def new_counts(self) -> Counter[str]:
        """Return what happened since the last call, by event."""
        fresh = self.core.counts - self._reported
        self._reported = self.core.counts.copy()
        return fresh

    def _put(self, emissions: Sequence[Emission]) -> None:
        if emissions:
            self._outbox.extend(self._encoded(emission) for emission in emissions)
            self._has_output.set()

    async def write(self) -> None:
        """Write the outbox, for ever."""
        while True:
            await self._has_output.wait()
            self._has_output.clear()
            while self._outbox:
                batch: list[Produced] = []
                while self._outbox and len(batch) < _MAX_BATCH and not isinstance(self._outbox[0], Cut):
                    item = self._outbox.popleft()
                    assert not isinstance(item, Cut)
                    batch.append(item)
                await send_until_acknowledged(self._sender, batch)
                if self._outbox and isinstance(self._outbox[0], Cut):
                    cut = self._outbox.popleft()
                    assert isinstance(cut, Cut)
                    self._acknowledge(cut)

    def _acknowledge(self, cut: Cut) -> None:
        self._num_cuts -= 1
        for messages, end in ((self._generations, cut.generations_committable), (self._feedback, cut.feedback_committable)):
            while messages and messages[0].offset < end:
                self._ack(messages.popleft())

    def _encoded(self, emission: Emission) -> Produced:
        if isinstance(emission, Example):
            return self._encoded_example(emission)
        letter = codec.write_dead_letter(emission, wall_clock_ms())
        name = f"{emission.record.topic}.dlq.v1"
        return Produced(name, emission.record.key or b"", letter.SerializeToString(), dead_letter_headers(letter, SOURCE))

    def _encoded_example(self, example: Example) -> Produced:
        """The span continues the feedback's trace and is linked with the answer's."""
        links = [example.generation.traceparent]
        with self._telemetry.span("curator.curate", parent=example.feedback.traceparent, links=links, kind=SpanKind.CONSUMER):
            headers = envelope.headers_for(LLM_EXAMPLES.value, SOURCE, event_id=example.example_id, traceparent=current_traceparent())
        return Produced(LLM_EXAMPLES.name, example.generation.task.encode(), codec.write_example(example), headers)


def _record_of(message: Any) -> Record:
    return Record(message.topic, message.partition, message.offset, message.key, message.value, tuple(message.headers or ()))


def _keep(messages: deque[Any], message: Any) -> None:
    """Keep a message until it may be acknowledged, without its content: the curation keeps what it needs of it."""
    message.value = None
    message.headers = None
    messages.append(message)
