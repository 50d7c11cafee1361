"""A producer whose sends keep their order, and do not wait for each other."""

from __future__ import annotations

import asyncio

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, UnknownError

from services.common.platform.errors import Unavailable
from services.common.platform.kafka_batches import AIOKAFKA_PACKAGES
from services.common.platform.kafka_compression import Compression, compression_type
from streams.partitioned.records import Outgoing

# Longer than a broker's restart: until then aiokafka repeats a batch by itself; after it the joiner dies and starts from the log.
_DELIVERY_TIMEOUT_MS = 60_000


class OrderedProducer:
    """Sends without waiting for the acknowledgement; what is sent to one partition is written in the order of the calls."""

    def __init__(self, bootstrap_servers: str, client_id: str, compression: Compression = "none") -> None:
        """Nothing is connected before `start`. Raises ConfigurationError when the compression's package is not installed."""
        self._bootstrap = bootstrap_servers
        self._client_id = client_id
        self._compression_type = compression_type(compression, AIOKAFKA_PACKAGES)
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect.

        Raises:
            Unavailable: no broker.
        """
        try:
            try:
                self._producer = await self._open(idempotent=True)
            except UnknownError:
                # The embedded broker (Tansu 0.6) has no producer ids for aiokafka. A repeated batch only repeats samples and dead letters.
                self._producer = await self._open(idempotent=False)
        except (KafkaError, OSError) as error:
            raise Unavailable(f"no Kafka broker at {self._bootstrap}: {error!r}") from error

    async def _open(self, *, idempotent: bool) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            client_id=self._client_id,
            acks="all",
            compression_type=self._compression_type,
            enable_idempotence=idempotent,
            linger_ms=50,  # a request to the broker costs more than the join of an event
            request_timeout_ms=_DELIVERY_TIMEOUT_MS,
            max_batch_size=256 * 1024,
            max_request_size=2 * 1024 * 1024,
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer

    async def send(self, record: Outgoing) -> asyncio.Future[object]:
        """Queue one record and return the future of its acknowledgement. Waits only while the queue is full."""
        assert self._producer is not None, "send before start"
        future: asyncio.Future[object] = await self._producer.send(
            record.topic, record.value, record.key, record.partition, headers=list(record.headers)
        )
        return future

    async def stop(self) -> None:
        """Send what is queued and close."""
        if self._producer is not None:
            await self._producer.stop()
