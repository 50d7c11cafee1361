"""The asyncio producer of the light environment: idempotent, acks=all, bounded, and quick to say that the broker is down.

Nothing here blocks a caller for longer than its timeout: while the broker is down every send fails at once and a background task
reconnects. Knows no topic and no message type.

A broker refuses a batch as a whole, and after that an idempotent aiokafka producer (0.14) gets nothing into that partition any more: Apache
Kafka answers OutOfOrderSequenceNumber to every later batch. So after a refusal the connection is renewed. Where a batch was too large, the
batches of the new one have half the size, and the records are sent again: soon they fit, and what is larger than a batch travels alone from
then on, over a second connection without sequence numbers. What is refused for another cause is sent alone, too: only a record that was
refused alone counts as refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidMessageError,
    InvalidTimestampError,
    KafkaError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    PolicyViolationError,
    RecordListTooLargeError,
    UnknownError,
)

from services.common.platform.errors import Overloaded
from services.common.platform.kafka_batches import AIOKAFKA_PACKAGES
from services.common.platform.kafka_compression import Compression, compression_type
from services.common.platform.kafka_record import NotAcknowledged, Record, Refusal

_MAX_RECORD_BYTES = 1_000_000
# aiokafka's default of 16 KiB holds one exposure of 100 items: each would cost a request of its own.
_MAX_BATCH_BYTES = 500_000
_LINGER_MS = 20
_RECONNECT_S = 0.5
_ATTEMPTS_PER_LOG_LINE = 20
_STOP_TIMEOUT_S = 10.0
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
# What is wrong with a record, and will be as wrong the next time.
_REFUSALS = (*_TOO_LARGE, InvalidMessageError, InvalidTimestampError, PolicyViolationError)
# Said of a batch: of its records, or of what went before it.
_OF_A_BATCH = (*_REFUSALS, OutOfOrderSequenceNumber)

_log = logging.getLogger(__name__)


class AsyncProducer:
    """Sends records and waits for their acknowledgement. One per process and event loop."""

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        client_id: str,
        delivery_timeout_ms: int = 5_000,
        max_in_flight: int = 10_000,
        linger_ms: int = _LINGER_MS,
        compression: Compression = "none",
    ) -> None:
        """Nothing is connected before `start`.

        Args:
            bootstrap_servers: comma-separated host:port list.
            client_id: shown in the broker's log.
            delivery_timeout_ms: a record without acknowledgement for so long means that the broker is down.
            max_in_flight: most records that wait for their acknowledgement.
            linger_ms: sends within this time share one request; it is part of every acknowledgement's latency.
            compression: of what is written.
        Raises:
            ConfigurationError: the compression's package is not installed.
        """
        self._bootstrap = bootstrap_servers
        self._client_id = client_id
        self._timeout_s = delivery_timeout_ms / 1e3
        self._max_in_flight = max_in_flight
        self._linger_ms = linger_ms
        self._compression_type = compression_type(compression, AIOKAFKA_PACKAGES)
        self._in_flight = 0
        self._producer: AIOKafkaProducer | None = None
        self._lone: AIOKafkaProducer | None = None
        self._max_batch_bytes = _MAX_BATCH_BYTES
        self._is_idempotent = True
        self._renewal = asyncio.Lock()
        self._connector: asyncio.Task[None] | None = None
        self._discards: set[asyncio.Task[None]] = set()
        self._reason = "not connected yet"

    @property
    def connected(self) -> bool:
        """False while the broker is known to be down."""
        return self._producer is not None

    async def start(self, *, wait_s: float = 0.0) -> bool:
        """Begin to connect, wait for it at most `wait_s` seconds, and return whether it is. An absent broker is no error here.

        A repetition goes on waiting.
        """
        if self._connector is None or (self._connector.done() and not self.connected):
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
        self._drop_lone()
        if self._discards:
            await asyncio.wait(self._discards, timeout=_STOP_TIMEOUT_S)

    async def send(self, records: Sequence[Record], *, timeout_s: float | None = None) -> None:
        """Produce the records and return once the broker has acknowledged all of them.

        Args:
            records: at most `max_in_flight`; those of one key, or of one partition where they name it, keep their order (but around a
                batch that is refused by a broker that gives no producer ids).
            timeout_s: gives up earlier than the delivery timeout.
        Raises:
            NotAcknowledged: no broker, or no acknowledgement in time, or a record is refused, by the broker or for its 1 MB and more by
                this client; carries the records concerned. The others are acknowledged.
            Overloaded: too many records wait for their acknowledgement already; nothing was sent.
        """
        producer = self._producer
        if producer is None:
            raise NotAcknowledged(f"Kafka at {self._bootstrap} is down ({self._reason})", records)
        if self._in_flight + len(records) > self._max_in_flight:
            raise Overloaded(f"{self._in_flight} records wait for Kafka's acknowledgement already; retry later")
        limit_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        self._in_flight += len(records)
        said: list[Exception | None] = [_too_large(each) for each in records]
        fit = [index for index, error in enumerate(said) if error is None]
        try:
            for index, error in zip(
                fit, await self._deliver(producer, [records[at] for at in fit], time.monotonic() + limit_s), strict=True
            ):
                said[index] = error
        finally:
            self._in_flight -= len(records)
        if not any(said):
            return
        errors = [error for error in said if error is not None]
        refused = [Refusal(each, repr(error)) for each, error in zip(records, said, strict=True) if isinstance(error, _REFUSALS)]
        still_open = [each for each, error in zip(records, said, strict=True) if error and not isinstance(error, _REFUSALS)]
        what = "did not acknowledge in time" if still_open else "refused"
        raise NotAcknowledged(f"Kafka at {self._bootstrap} {what}: {errors[0]!r}", still_open, refused=refused) from errors[0]

    async def _deliver(self, producer: AIOKafkaProducer, records: Sequence[Record], until: float) -> list[Exception | None]:
        """Return what became of each record: None where it is acknowledged. A refusal is of that very record."""
        # What has its place beside a large one goes with it, for its order.
        large = {_place(each) for each in records if self._is_larger_than_a_batch(each)}
        alone = [index for index, each in enumerate(records) if _place(each) in large] if large else []
        together = [index for index, each in enumerate(records) if _place(each) not in large] if large else range(len(records))
        started = time.monotonic()
        said_together, said_alone = await asyncio.gather(
            _send_all(producer, [records[index] for index in together], until), self._send_alone([records[index] for index in alone], until)
        )
        said = dict(zip(alone, said_alone, strict=True)) | dict(zip(together, said_together, strict=True))
        in_company = [index for index, error in zip(together, said_together, strict=True) if isinstance(error, _OF_A_BATCH)]
        for error in said_together:
            if error is not None and not isinstance(error, _OF_A_BATCH):
                self._on_failure(producer, error, time.monotonic() - started)
                break
        if in_company:
            again = [records[index] for index in in_company]
            is_too_large = any(isinstance(said[index], _TOO_LARGE) for index in in_company)
            await self._renew(producer, is_too_large=is_too_large, until=until)
            renewed = self._producer
            said_again = await (self._deliver(renewed, again, until) if is_too_large and renewed else self._send_alone(again, until))
            said |= dict(zip(in_company, said_again, strict=True))
        return [said[index] for index in range(len(records))]

    def _is_larger_than_a_batch(self, record: Record) -> bool:
        return _size(record) > self._max_batch_bytes

    async def _send_alone(self, records: Sequence[Record], until: float) -> list[Exception | None]:
        """Send each record in a batch of its own, without sequence numbers: a refusal is of that record and breaks nothing."""
        if not records:
            return []
        try:
            async with self._renewal, asyncio.timeout(until - time.monotonic()):
                if self._lone is None:
                    self._lone = await self._open_connection(idempotent=False, max_batch_bytes=1)
                lone = self._lone
        except (KafkaError, OSError, TimeoutError) as error:
            return [error] * len(records)
        said = await _send_all(lone, records, until)
        if lone is self._lone and any(error is not None and not isinstance(error, _REFUSALS) for error in said):
            self._drop_lone()
        return said

    def _on_failure(self, producer: AIOKafkaProducer, error: Exception, waited_s: float) -> None:
        """A failed batch or a full delivery timeout ends this connection; a caller's own shorter timeout does not."""
        if isinstance(error, TimeoutError) and waited_s < 0.95 * self._timeout_s:
            return
        if producer is not self._producer:
            return
        self._producer = None
        self._reason = f"since a failure: {error!r}"
        _log.warning("Kafka at %s is down: %r; reconnecting", self._bootstrap, error)
        self._discard_later(producer, KafkaError(f"the connection was given up: {error!r}"))
        self._connector = asyncio.create_task(self._connect())

    async def _renew(self, producer: AIOKafkaProducer, *, is_too_large: bool, until: float) -> None:
        """Replace a connection whose sequence a refusal has broken; where a batch was too large, by one with batches of half the size."""
        async with self._renewal:
            if producer is not self._producer:
                return
            if is_too_large:
                self._max_batch_bytes = max(1, self._max_batch_bytes // 2)
                _log.warning("Kafka at %s refused a batch: from now on they have at most %d bytes", self._bootstrap, self._max_batch_bytes)
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    fresh = await self._open_connection(idempotent=self._is_idempotent, max_batch_bytes=self._max_batch_bytes)
            except (KafkaError, OSError, TimeoutError) as error:
                self._on_failure(producer, KafkaError(repr(error)), 0.0)
                return
            if producer is self._producer:
                self._producer = fresh
                self._discard_later(producer, None)
            else:  # closed, or found down, meanwhile
                self._discard_later(fresh, None)

    def _drop_lone(self) -> None:
        lone, self._lone = self._lone, None
        if lone is not None:
            self._discard_later(lone, KafkaError("the connection was given up"))

    def _discard_later(self, producer: AIOKafkaProducer, error: KafkaError | None) -> None:
        task = asyncio.create_task(self._discard(producer, error))
        self._discards.add(task)
        task.add_done_callback(self._discards.discard)

    async def _discard(self, producer: AIOKafkaProducer, error: KafkaError | None) -> None:
        """Close a connection; `error` is for what it has under way, None lets it end."""
        # aiokafka's stop() flushes first and, being idempotent, retries for ever while the broker is down. There is no public way to
        # give up what is pending (aiokafka 0.14), hence the private accumulator.
        if error is not None:
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
                self._is_idempotent = True
                try:
                    self._producer = await self._open_connection(idempotent=True, max_batch_bytes=self._max_batch_bytes)
                except UnknownError as error:
                    # The embedded broker (Tansu 0.6) answers so to aiokafka's version of InitProducerId.
                    self._is_idempotent = False
                    self._producer = await self._open_connection(idempotent=False, max_batch_bytes=self._max_batch_bytes)
                    _log.warning("Kafka at %s gives no producer id (%r): a retry may write a record twice", self._bootstrap, error)
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody else would connect, and it is said
                self._reason = repr(error)
                if attempts % _ATTEMPTS_PER_LOG_LINE == 1:
                    _log.warning("no Kafka broker at %s: %r; trying again every %.1f s", self._bootstrap, error, _RECONNECT_S)
                await asyncio.sleep(_RECONNECT_S)
            else:
                _log.info("connected to Kafka at %s", self._bootstrap)
                return

    async def _open_connection(self, *, idempotent: bool, max_batch_bytes: int) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            client_id=self._client_id,
            acks="all",
            compression_type=self._compression_type,
            enable_idempotence=idempotent,
            linger_ms=self._linger_ms if max_batch_bytes > 1 else 0,
            request_timeout_ms=int(self._timeout_s * 1e3),
            max_batch_size=max_batch_bytes,
            max_request_size=2 * _MAX_RECORD_BYTES,
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer


def _size(record: Record) -> int:
    return len(record.value) + len(record.key or b"")


def _too_large(record: Record) -> Exception | None:
    if _size(record) <= _MAX_RECORD_BYTES:
        return None
    error: Exception = MessageSizeTooLargeError(f"{_size(record)} bytes are more than the {_MAX_RECORD_BYTES} that a record may have")
    return error


def _place(record: Record) -> tuple[str, int | bytes | None]:
    """Return what records share that keep their order."""
    return record.topic, record.key if record.partition is None else record.partition


def _retrieve(future: asyncio.Future[object]) -> None:
    """Nobody awaits this future any more; asyncio logs an exception that is never retrieved."""
    if not future.cancelled():
        future.exception()


async def _send_all(producer: AIOKafkaProducer, records: Sequence[Record], until: float) -> list[Exception | None]:
    """Send records in their order and return what became of each: None where it is acknowledged by `until`, of the monotonic clock."""
    said: list[Exception | None] = [None] * len(records)
    futures: dict[int, asyncio.Future[object]] = {}
    failure: Exception = TimeoutError("no acknowledgement in time")
    try:
        async with asyncio.timeout(until - time.monotonic()):
            for index, each in enumerate(records):
                try:
                    futures[index] = await producer.send(each.topic, each.value, each.key, each.partition, headers=each.headers)
                except _REFUSALS as error:  # larger than any request
                    said[index] = error
            if futures:
                await asyncio.wait(futures.values())
    except TimeoutError:
        pass
    except KafkaError as error:
        failure = error
    finally:
        for future in futures.values():
            future.add_done_callback(_retrieve)
    for index in range(len(records)):
        if index in futures:
            said[index] = _outcome(futures[index], failure)
        elif said[index] is None:
            said[index] = failure
    return said


def _outcome(future: asyncio.Future[object], failure: Exception) -> Exception | None:
    if not future.done() or future.cancelled():
        return failure
    error = future.exception()
    if error is None or isinstance(error, Exception):
        return error
    raise error
