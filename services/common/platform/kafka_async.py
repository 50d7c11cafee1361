"""The asyncio producer of the light environment: idempotent, acks=all, bounded, and quick to say that the broker is down.

Nothing here blocks a caller for longer than its timeout: while the broker is down every send fails at once and a background task
reconnects. Knows no topic and no message type.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidMessageError,
    InvalidTimestampError,
    KafkaError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    UnknownError,
)

from services.common.platform.errors import InvalidInput, Overloaded, Unavailable
from services.common.platform.kafka_batches import AIOKAFKA_PACKAGES
from services.common.platform.kafka_compression import Compression, compression_type

_MAX_RECORD_BYTES = 1_000_000
# aiokafka's default of 16 KiB holds one exposure of 100 items: each would cost a request of its own.
_MAX_BATCH_BYTES = 500_000
# Concurrent sends within this time share one request; it is part of every acknowledgement's latency.
_LINGER_MS = 20
_RECONNECT_S = 0.5
_ATTEMPTS_PER_LOG_LINE = 20
_STOP_TIMEOUT_S = 10.0
# What is wrong with a record, and will be as wrong the next time.
_REFUSALS = (MessageSizeTooLargeError, RecordListTooLargeError, InvalidMessageError, InvalidTimestampError, PolicyViolationError)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """One record to produce; without a `partition` the key chooses one (murmur2)."""

    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    partition: int | None = None


class NotAcknowledged(Unavailable):
    """The broker did not acknowledge these records in time. They may have been written all the same: repeat what is harmless to repeat.

    Attributes:
        records: those without an acknowledgement, in the order in which they were given.
        refused: the broker said that it will never take one of them. Which one is told by sending them one by one.
    """

    def __init__(self, message: str, records: Sequence[Record], *, refused: bool = False) -> None:
        super().__init__(message)
        self.records = list(records)
        self.refused = refused


class AsyncProducer:
    """Sends records and waits for their acknowledgement. One per process and event loop."""

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        client_id: str,
        delivery_timeout_ms: int = 5_000,
        max_in_flight: int = 10_000,
        compression: Compression = "none",
    ) -> None:
        """Nothing is connected before `start`.

        Args:
            bootstrap_servers: comma-separated host:port list.
            client_id: shown in the broker's log.
            delivery_timeout_ms: a record without acknowledgement for so long means that the broker is down.
            max_in_flight: most records that wait for their acknowledgement.
            compression: of what is written.
        Raises:
            ConfigurationError: the compression's package is not installed.
        """
        self._bootstrap = bootstrap_servers
        self._client_id = client_id
        self._timeout_s = delivery_timeout_ms / 1e3
        self._max_in_flight = max_in_flight
        self._compression_type = compression_type(compression, AIOKAFKA_PACKAGES)
        self._in_flight = 0
        self._producer: AIOKafkaProducer | None = None
        self._connector: asyncio.Task[None] | None = None
        self._discards: set[asyncio.Task[None]] = set()
        self._reason = "not connected yet"

    @property
    def connected(self) -> bool:
        """False while the broker is known to be down."""
        return self._producer is not None

    async def start(self, *, wait_s: float = 0.0) -> bool:
        """Begin to connect, wait for it at most `wait_s` seconds, and return whether it is. An absent broker is no error here."""
        self._connector = asyncio.create_task(self._connect())
        await asyncio.wait({self._connector}, timeout=wait_s)
        return self.connected

    async def stop(self) -> None:
        """Send what is pending, as far as the delivery timeout allows, and close."""
        if self._connector is not None:
            self._connector.cancel()
            await asyncio.wait({self._connector})
        producer, self._producer = self._producer, None
        self._reason = "shutting down"
        if producer is not None:
            try:
                await asyncio.wait_for(producer.flush(), self._timeout_s)
            except TimeoutError:
                _log.warning("Kafka at %s did not take the last records within %.1f s", self._bootstrap, self._timeout_s)
            await self._discard(producer, KafkaError("the producer was closed"))
        if self._discards:
            await asyncio.wait(self._discards, timeout=_STOP_TIMEOUT_S)

    async def send(self, records: Sequence[Record], *, timeout_s: float | None = None) -> None:
        """Produce the records and return once the broker has acknowledged all of them.

        Args:
            records: at most `max_in_flight`; records of one key keep their order.
            timeout_s: gives up earlier than the delivery timeout.
        Raises:
            NotAcknowledged: no broker, or no acknowledgement in time; carries the records concerned.
            Overloaded: too many records wait for their acknowledgement already; nothing was sent.
            InvalidInput: a record is larger than 1 MB; nothing was sent.
        """
        producer = self._producer
        if producer is None:
            raise NotAcknowledged(f"Kafka at {self._bootstrap} is down ({self._reason})", records)
        self._check_bounds(records)
        limit_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        self._in_flight += len(records)
        started = time.monotonic()
        futures: list[asyncio.Future[object]] = []
        try:
            async with asyncio.timeout(limit_s):
                for record in records:
                    futures.append(await producer.send(record.topic, record.value, record.key, record.partition, headers=record.headers))
                for future in futures:
                    await future
        except (KafkaError, TimeoutError) as error:
            for future in futures:
                future.add_done_callback(_retrieve)
            self._on_failure(producer, error, time.monotonic() - started)
            refused = isinstance(error, _REFUSALS)
            what = "refused" if refused else "did not acknowledge in time"
            raise NotAcknowledged(f"Kafka at {self._bootstrap} {what}: {error!r}", _open(records, futures), refused=refused) from error
        finally:
            self._in_flight -= len(records)

    def _check_bounds(self, records: Sequence[Record]) -> None:
        if self._in_flight + len(records) > self._max_in_flight:
            raise Overloaded(f"{self._in_flight} records wait for Kafka's acknowledgement already; retry later")
        for record in records:
            size = len(record.value) + len(record.key)
            if size > _MAX_RECORD_BYTES:
                raise InvalidInput(f"a record of {size} bytes for {record.topic} is larger than {_MAX_RECORD_BYTES}")

    def _on_failure(self, producer: AIOKafkaProducer, error: Exception, waited_s: float) -> None:
        """A failed batch or a full delivery timeout ends this connection; a caller's own shorter timeout does not."""
        if isinstance(error, _REFUSALS) or (isinstance(error, TimeoutError) and waited_s < 0.95 * self._timeout_s):
            return
        if producer is not self._producer:
            return
        self._producer = None
        self._reason = f"since a failure: {error!r}"
        _log.warning("Kafka at %s is down: %r; reconnecting", self._bootstrap, error)
        task = asyncio.create_task(self._discard(producer, KafkaError(f"the connection was given up: {error!r}")))
        self._discards.add(task)
        task.add_done_callback(self._discards.discard)
        self._connector = asyncio.create_task(self._connect())

    async def _discard(self, producer: AIOKafkaProducer, error: KafkaError) -> None:
        # aiokafka's stop() flushes first and, being idempotent, retries for ever while the broker is down. There is no public way to
        # give up what is pending (aiokafka 0.14), hence the private accumulator.
        producer._message_accumulator.fail_all(error)
        try:
            await asyncio.wait_for(producer.stop(), _STOP_TIMEOUT_S)
        except KeyError:
            # A batch that was under way when it was failed here is put back by aiokafka's sender, which then misses it and dies.
            await producer.client.close()
        except (KafkaError, TimeoutError) as stop_error:
            _log.warning("closing the connection to Kafka at %s: %r", self._bootstrap, stop_error)
            await producer.client.close()

    async def _connect(self) -> None:
        attempts = 0
        while True:
            attempts += 1
            try:
                try:
                    self._producer = await self._open_connection(idempotent=True)
                except UnknownError as error:
                    # The embedded broker (Tansu 0.6) answers so to aiokafka's version of InitProducerId.
                    self._producer = await self._open_connection(idempotent=False)
                    _log.warning("Kafka at %s gives no producer id (%r): a retry may write a record twice", self._bootstrap, error)
            except (KafkaError, OSError) as error:
                self._reason = repr(error)
                if attempts % _ATTEMPTS_PER_LOG_LINE == 1:
                    _log.warning("no Kafka broker at %s: %r; trying again every %.1f s", self._bootstrap, error, _RECONNECT_S)
                await asyncio.sleep(_RECONNECT_S)
            else:
                _log.info("connected to Kafka at %s", self._bootstrap)
                return

    async def _open_connection(self, *, idempotent: bool) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            client_id=self._client_id,
            acks="all",
            compression_type=self._compression_type,
            enable_idempotence=idempotent,
            linger_ms=_LINGER_MS,
            request_timeout_ms=int(self._timeout_s * 1e3),
            max_batch_size=_MAX_BATCH_BYTES,
            max_request_size=2 * _MAX_RECORD_BYTES,
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer


def _retrieve(future: asyncio.Future[object]) -> None:
    """Nobody awaits this future any more; asyncio logs an exception that is never retrieved."""
    if not future.cancelled():
        future.exception()


def _open(records: Sequence[Record], futures: Sequence[asyncio.Future[object]]) -> list[Record]:
    """Return the records whose future is missing or did not succeed."""
    done = [future.done() and not future.cancelled() and future.exception() is None for future in futures]
    return [record for index, record in enumerate(records) if index >= len(done) or not done[index]]
