"""kafka-python producers that lose nothing that was acknowledged, and one that outlives the broker's absence.

Imports in both environments; asyncio processes of the light one produce with `services.common.platform.kafka_async`. Knows no topic and no
message type.

An idempotent kafka-python producer (3.0.12) that had one record refused for its size is of no more use: it answers every later send with
the same error, whatever is sent. So after a refusal its connection is renewed, and a refusal is believed of a record that was sent alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kafka import KafkaProducer
from kafka.errors import (
    InvalidTimestampError,
    KafkaError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
)

from services.common.platform.errors import Unavailable
from services.common.platform.kafka_batches import KAFKA_PYTHON_PACKAGES
from services.common.platform.kafka_compression import Compression, compression_type
from services.common.platform.kafka_connect import connected
from services.common.platform.kafka_record import Record

REFUSALS = (MessageSizeTooLargeError, RecordListTooLargeError, InvalidTimestampError, PolicyViolationError)
"""What is wrong with a record, and will be as wrong the next time."""

# While the broker is down, what would block for longer fails.
_MAX_BLOCK_MS = 2_000
_RENEWAL_TIMEOUT_MS = 1_000
_RENEWAL_PAUSE_S = 1.0
_ABANDON_TIMEOUT_S = 2.0


def durable_producer(
    bootstrap_servers: str, *, client_id: str, delivery_timeout_ms: int = 10_000, compression: Compression = "none", **overrides: Any
) -> KafkaProducer:
    """Return a thread-safe kafka-python producer: idempotent, acks=all, murmur2 by key.

    `send(...).get(timeout_s)` waits for the acknowledgement.

    Raises:
        Unavailable: no broker.
        ConfigurationError: the compression's package is not installed.
    """
    config: dict[str, Any] = {
        "bootstrap_servers": bootstrap_servers.split(","),
        "client_id": client_id,
        "acks": "all",
        "compression_type": compression_type(compression, KAFKA_PYTHON_PACKAGES),
        "enable_idempotence": True,
        "allow_auto_create_topics": False,
        "delivery_timeout_ms": delivery_timeout_ms,
        "request_timeout_ms": min(delivery_timeout_ms, 5_000),
        "max_block_ms": delivery_timeout_ms,
        "reconnect_backoff_max_ms": 1_000,
        "bootstrap_timeout_ms": delivery_timeout_ms,
        "metrics_enabled": False,
        **overrides,
    }
    return connected(KafkaProducer, bootstrap_servers, config)


def send_each(
    bootstrap_servers: str, records: Sequence[Record], *, client_id: str, timeout_s: float = 10.0, compression: Compression = "none"
) -> list[KafkaError | None]:
    """Send records over a connection of their own, in their order, and return what became of each.

    None: it is acknowledged. One of REFUSALS: the broker will never take that very record. Anything else: it may or may not be written.

    Raises:
        Unavailable: no broker.
    """
    config: dict[str, Any] = {"client_id": client_id, "compression": compression, "delivery_timeout_ms": int(timeout_s * 1e3)}
    producer = durable_producer(bootstrap_servers, **config)
    try:
        said = _outcomes([_begin(producer, each) for each in records], timeout_s)
    finally:
        _abandon(producer, 1.0)
    if any(isinstance(error, REFUSALS) for error in said):
        again = [index for index, error in enumerate(said) if error is not None]
        producer = durable_producer(bootstrap_servers, **config, enable_idempotence=False)
        try:
            for index in again:
                (said[index],) = _outcomes([_begin(producer, records[index])], timeout_s)
        finally:
            _abandon(producer, 1.0)
    return said


def _begin(producer: KafkaProducer, record: Record) -> Any:
    """Return the future of a send, or why it did not begin."""
    try:
        return producer.send(record.topic, record.value, record.key, list(record.headers), record.partition)
    except KafkaError as error:
        return error


def _outcomes(sent: Sequence[Any], timeout_s: float) -> list[KafkaError | None]:
    until = time.monotonic() + timeout_s
    said: list[KafkaError | None] = []
    for each in sent:
        if isinstance(each, KafkaError):
            said.append(each)
            continue
        try:
            each.get(max(0.0, until - time.monotonic()))
        except KafkaError as error:
            said.append(error)
        else:
            said.append(None)
    return said


class RenewedProducer:
    """A durable producer that outlives the broker's absence: after a failure the next send goes through a new connection.

    A kafka-python producer that had a batch under way when its broker died may never send again. Giving it up fails what else it had under
    way, so whoever sends must be ready to send again, and a record that was written without an acknowledgement is then there twice.
    Thread-safe; a send blocks for some seconds at most, and not at all while the broker is known to be down.
    """

    def __init__(self, bootstrap_servers: str, *, client_id: str, delivery_timeout_ms: int = 10_000, **overrides: Any) -> None:
        """Connect.

        Args: as of `durable_producer`.
        Raises: as `durable_producer`.
        """
        self._bootstrap_servers = bootstrap_servers
        self._config: dict[str, Any] = {
            "client_id": client_id,
            "delivery_timeout_ms": delivery_timeout_ms,
            "max_block_ms": _MAX_BLOCK_MS,
            **overrides,
        }
        self._lock = threading.Lock()
        self._outage, self._retry_at = "", 0.0
        self._connection: _Connection | None = _Connection(durable_producer(bootstrap_servers, **self._config))

    def send(
        self,
        topic: str,
        value: bytes,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> Any:
        """Start writing a record; return kafka-python's future of it.

        Raises:
            Unavailable: the broker is down. Try again later.
        """
        with self._lock:
            connection = self._usable()
        try:
            future = connection.producer.send(topic, value, key, list(headers), partition)
        except KafkaError as error:
            connection.note(error)
            raise Unavailable(f"writing {topic}: {error!r}") from error
        future.add_errback(connection.note)
        return future

    def close(self, timeout_s: float = 1.0) -> None:
        """Wait at most so long for what is under way, give up the rest, disconnect."""
        with self._lock:
            connection, self._connection = self._connection, None
            self._outage, self._retry_at = "closed", float("inf")
        if connection is not None:
            _abandon(connection.producer, timeout_s)

    def _usable(self) -> _Connection:
        if self._connection is not None:
            if not self._connection.failure:
                return self._connection
            self._outage = self._connection.failure
            _abandon(self._connection.producer, 0.0)
            self._connection = None
        if time.monotonic() < self._retry_at:
            raise Unavailable(f"Kafka at {self._bootstrap_servers} is down: {self._outage}")
        try:
            producer = durable_producer(self._bootstrap_servers, **self._config, bootstrap_timeout_ms=_RENEWAL_TIMEOUT_MS)
        except Unavailable as error:
            self._outage, self._retry_at = str(error), time.monotonic() + _RENEWAL_PAUSE_S
            raise
        self._connection = _Connection(producer)
        return self._connection


@dataclass(slots=True)
class _Connection:
    """A producer, and why it is not to be used any more."""

    producer: KafkaProducer
    failure: str = ""

    def note(self, error: BaseException) -> None:
        """Called when a send failed, also in the producer's own thread."""
        self.failure = repr(error)


def _abandon(producer: KafkaProducer, timeout_s: float) -> None:
    """Close a producer whatever it has under way.

    Its own `close` raises when the flush in it does not end, and leaves the thread running; there is no public way to give up.
    """
    try:
        producer.close(timeout=timeout_s)
    except KafkaError:
        producer._sender.force_close()
        producer._sender.join(_ABANDON_TIMEOUT_S)
        with suppress(KafkaError):
            producer.close(timeout=0)
