"""How what a partition writes reaches Kafka: in two ways, by what a broker that is down means to the stream."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from services.common.platform.kafka_async import Record as Produced
from streams.partitioned.records import Outgoing
from streams.worker import Sender, send_until_acknowledged


class Output(Protocol):
    """Where one partition writes to."""

    async def send(self, records: Sequence[Outgoing]) -> None:
        """Send records in their order; may return before they are acknowledged."""
        ...

    async def wait_acknowledged(self) -> None:
        """Return once the broker has acknowledged everything that was sent."""
        ...


class Queue(Protocol):
    """A producer whose sends keep their order (streams.joiner.ordered_producer.OrderedProducer)."""

    async def send(self, record: Outgoing) -> asyncio.Future[object]:
        """Queue one record; the future is its acknowledgement."""
        ...


class PipelinedOutput:
    """Sends without waiting, in order. A record that the broker does not take in time raises at the next wait: the process ends, and the
    next one writes again what was not acknowledged.
    """

    def __init__(self, queue: Queue) -> None:
        """`queue` may be shared by several partitions."""
        self._queue = queue
        self._in_flight: list[asyncio.Future[object]] = []

    async def send(self, records: Sequence[Outgoing]) -> None:
        """Queue the records; waits only while the queue is full."""
        for record in records:
            self._in_flight.append(await self._queue.send(record))

    async def wait_acknowledged(self) -> None:
        """Return once everything is acknowledged; raises what the producer raised."""
        await asyncio.gather(*self._in_flight)
        self._in_flight.clear()


class RepeatingOutput:
    """Sends until the broker acknowledges, however long it is down. A record may so be written twice; its id tells its readers."""

    def __init__(self, sender: Sender) -> None:
        """`sender` may be shared by several partitions."""
        self._sender = sender

    async def send(self, records: Sequence[Outgoing]) -> None:
        """Return once all are acknowledged."""
        produced = [
            Produced(record.topic, record.key or b"", record.value or b"", list(record.headers), record.partition) for record in records
        ]
        await send_until_acknowledged(self._sender, produced)

    async def wait_acknowledged(self) -> None:
        """Return at once: `send` has waited."""
