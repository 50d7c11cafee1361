"""How what a partition writes reaches Kafka: in two ways, by what a broker that is down means to the stream.

What the broker will never take is no outage: its dead letter takes its place either way (services.common.events.undeliverable).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from services.common.events.undeliverable import Sender, Undeliverable
from services.common.platform.kafka_record import Record as Produced
from streams.partitioned.records import Outgoing


class Output(Protocol):
    """Where one partition writes to."""

    async def send(self, records: Sequence[Outgoing]) -> None:
        """Send records, those of one partition in their order; return once the broker has each of them, or its dead letter."""
        ...


class EndingOutput:
    """Raises NotAcknowledged when the broker does not take what it could: the process ends, and the next one writes again what was not
    acknowledged, in its order. The producer's delivery timeout is how long that may take.
    """

    def __init__(self, sender: Sender, undeliverable: Undeliverable) -> None:
        """Both may be shared by several partitions."""
        self._sender, self._undeliverable = sender, undeliverable

    async def send(self, records: Sequence[Outgoing]) -> None:
        """Return once all are acknowledged or set aside."""
        await self._undeliverable.send_once(self._sender, _produced(records))


class RepeatingOutput:
    """Sends until the broker acknowledges, however long it is down. A record may so be written twice; its id tells its readers."""

    def __init__(self, sender: Sender, undeliverable: Undeliverable) -> None:
        """Both may be shared by several partitions."""
        self._sender, self._undeliverable = sender, undeliverable

    async def send(self, records: Sequence[Outgoing]) -> None:
        """Return once all are acknowledged or set aside."""
        await self._undeliverable.send_until_acknowledged(self._sender, _produced(records))


def _produced(records: Sequence[Outgoing]) -> list[Produced]:
    return [Produced(record.topic, record.key, record.value or b"", list(record.headers), record.partition) for record in records]
