"""kafka-python helpers for processes that own their offsets: assigned partitions, no groups, never a silent jump.

Imports in both environments; asyncio processes of the light one produce with `services.common.platform.kafka_async`. Knows no topic and no
message type.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, MessageSizeTooLargeError

from services.common.platform.errors import Unavailable

Start = Literal["beginning"] | Mapping[int, int]

# The broker answers a fetch after at most this long when too little is there; the embedded one after half of it.
_FETCH_WAIT_MS = 200
# Below this many bytes it waits for more: a request costs a broker more than a record does.
_FETCH_MIN_BYTES = 65_536
# While the broker is away, what would block for longer fails.
_MAX_BLOCK_MS = 2_000
_RENEWAL_TIMEOUT_MS = 1_000
_RENEWAL_PAUSE_S = 1.0
_ABANDON_TIMEOUT_S = 2.0


def assigned_consumer(
    bootstrap_servers: str,
    topic: str,
    partitions: Iterable[int] | None = None,
    *,
    start: Start,
    client_id: str,
    bootstrap_timeout_ms: int = 10_000,
    **overrides: Any,
) -> KafkaConsumer:
    """Return a consumer assigned to `partitions`, positioned at `start`, without a group.

    `auto_offset_reset` is "none": `poll` raises kafka.errors.OffsetOutOfRangeError when the broker no longer (or, after it lost its
    data, not yet) has the position. The caller must handle that: re-bootstrap, or stop and say so.

    Args:
        bootstrap_servers: comma-separated host:port list.
        topic: its name.
        partitions: None means all that exist now.
        start: "beginning", or the next offset per partition (partitions that are absent from it start at their beginning).
        client_id: shown in the broker's log.
        bootstrap_timeout_ms: how long to look for the broker, and for the topic.
        overrides: further kafka-python consumer settings.
    Raises:
        Unavailable: no broker, or no such topic, within the timeout. Retrying helps once it is there.
    """
    config: dict[str, Any] = {
        "bootstrap_servers": bootstrap_servers.split(","),
        "client_id": client_id,
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "allow_auto_create_topics": False,
        "fetch_max_wait_ms": _FETCH_WAIT_MS,
        "fetch_min_bytes": _FETCH_MIN_BYTES,
        "max_poll_records": 2_000,
        "reconnect_backoff_max_ms": 1_000,
        "bootstrap_timeout_ms": bootstrap_timeout_ms,
        "metrics_enabled": False,
        **overrides,
    }
    consumer = _connected(KafkaConsumer, bootstrap_servers, config)
    try:
        _assign(consumer, topic, partitions, start, bootstrap_timeout_ms)
    except BaseException as error:
        consumer.close()
        if isinstance(error, KafkaError):
            raise Unavailable(f"Kafka at {bootstrap_servers} did not answer for topic {topic}: {error!r}") from error
        raise
    return consumer


def _assign(consumer: KafkaConsumer, topic: str, partitions: Iterable[int] | None, start: Start, timeout_ms: int) -> None:
    existing = _partitions_of(consumer, topic, timeout_ms)
    wanted = sorted(existing if partitions is None else partitions)
    missing = [partition for partition in wanted if partition not in existing]
    if missing:
        raise Unavailable(f"topic {topic} has no partition {missing[0]}; it has {sorted(existing)}")
    assignment = [TopicPartition(topic, partition) for partition in wanted]
    consumer.assign(assignment)
    consumer.seek_to_beginning(*assignment)
    if start != "beginning":
        for partition in assignment:
            if partition.partition in start:
                consumer.seek(partition, start[partition.partition])


def _partitions_of(consumer: KafkaConsumer, topic: str, timeout_ms: int) -> set[int]:
    deadline = time.monotonic() + timeout_ms / 1000
    while True:
        partitions: set[int] | None = consumer.partitions_for_topic(topic)
        if partitions:
            return partitions
        if time.monotonic() > deadline:
            raise Unavailable(f"topic {topic} does not exist: create the topics first (`tunemesh topics`)")
        time.sleep(0.1)


def end_offsets(consumer: KafkaConsumer, timeout_ms: int = 10_000) -> dict[TopicPartition, int]:
    """Return the next offset of each assigned partition. Use it in place of the consumer's own `end_offsets`.

    The embedded broker answers ListOffsets with the FIRST offset of the last batch plus one (findings/tansu_list_offsets.sh): less than the
    position of whoever has read that batch. Its fetch answers are right. So what the last fetch said counts too, and a consumer that has
    fetched nothing yet fetches the last batch once (its positions are restored).

    Raises:
        Unavailable: the broker did not answer in time.
    """
    partitions = sorted(consumer.assignment())
    claimed: dict[TopicPartition, int] = consumer.end_offsets(partitions, timeout_ms=timeout_ms)
    unfetched = {partition for partition in partitions if claimed[partition] > 0 and consumer.highwater(partition) is None}
    if unfetched:
        _fetch_last_batches(consumer, {partition: claimed[partition] - 1 for partition in unfetched}, timeout_ms)
    return {partition: max(claimed[partition], consumer.highwater(partition) or 0) for partition in partitions}


def _fetch_last_batches(consumer: KafkaConsumer, offsets: Mapping[TopicPartition, int], timeout_ms: int) -> None:
    positions = {partition: consumer.position(partition) for partition in consumer.assignment()}
    deadline = time.monotonic() + timeout_ms / 1000
    for partition, offset in offsets.items():
        consumer.seek(partition, offset)
    try:
        while any(consumer.highwater(partition) is None for partition in offsets):
            if time.monotonic() > deadline:
                raise Unavailable(f"the end of {next(iter(offsets)).topic} could not be fetched in {timeout_ms} ms")
            consumer.poll(timeout_ms=_FETCH_WAIT_MS)
    finally:
        for partition, position in positions.items():
            consumer.seek(partition, position)


def drain_to_end(consumer: KafkaConsumer, timeout_ms: int = 30_000) -> list[Any]:
    """Return every record from the consumer's positions up to the ends that its partitions have now, in offset order per partition.

    What is appended meanwhile may be among them. A long log may take long: the time limit is on each step of it.

    Raises:
        Unavailable: for `timeout_ms` nothing came, and the end is not reached.
    """
    ends = end_offsets(consumer, timeout_ms)
    deadline = time.monotonic() + timeout_ms / 1000
    records: list[Any] = []
    # Without a timeout, `position` waits for ever for a broker that was there and is away.
    while behind := [
        at for at, end in ends.items() if consumer.position(at, timeout_ms=timeout_ms) < max(end, consumer.highwater(at) or 0)
    ]:
        if time.monotonic() > deadline:
            raise Unavailable(
                f"{behind[0].topic} was not read to its end: nothing came for {timeout_ms} ms, {len(records)} records did before"
            )
        for batch in consumer.poll(timeout_ms=_FETCH_WAIT_MS).values():
            records.extend(batch)
            deadline = time.monotonic() + timeout_ms / 1000
    return records


def read_compacted(bootstrap_servers: str, topic: str, *, client_id: str, timeout_ms: int = 30_000) -> dict[bytes, Any]:
    """Return the newest record per key of a whole topic, read to its present end; keys whose newest value is a tombstone are left out.

    Does not rely on the broker having compacted anything. The records are kafka-python ConsumerRecords.

    Raises:
        Unavailable: no broker, no topic, or the end was not reached in time.
    """
    consumer = assigned_consumer(bootstrap_servers, topic, start="beginning", client_id=client_id, bootstrap_timeout_ms=timeout_ms)
    try:
        newest = {record.key: record for record in drain_to_end(consumer, timeout_ms) if record.key is not None}
    except KafkaError as error:
        raise Unavailable(f"reading topic {topic} failed: {error!r}") from error
    finally:
        consumer.close()
    return {key: record for key, record in newest.items() if record.value is not None}


def durable_producer(bootstrap_servers: str, *, client_id: str, delivery_timeout_ms: int = 10_000, **overrides: Any) -> KafkaProducer:
    """Return a thread-safe kafka-python producer: idempotent, acks=all, murmur2 by key.

    `send(...).get(timeout_s)` waits for the acknowledgement.

    Raises:
        Unavailable: no broker.
    """
    config: dict[str, Any] = {
        "bootstrap_servers": bootstrap_servers.split(","),
        "client_id": client_id,
        "acks": "all",
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
    return _connected(KafkaProducer, bootstrap_servers, config)


class RenewedProducer:
    """A durable producer that outlives the broker's absence: after a failure the next send goes through a new connection.

    A kafka-python producer that had a batch under way when its broker died may never send again. Giving it up fails what else it had under
    way, so whoever sends must be ready to send again, and a record that was written without an acknowledgement is then there twice.
    Thread-safe; a send blocks for some seconds at most, and not at all while the broker is known to be away.
    """

    def __init__(self, bootstrap_servers: str, *, client_id: str, delivery_timeout_ms: int = 10_000, **overrides: Any) -> None:
        """Connect.

        Args: as of `durable_producer`.
        Raises:
            Unavailable: no broker.
        """
        self._bootstrap_servers = bootstrap_servers
        self._config: dict[str, Any] = {
            "client_id": client_id,
            "delivery_timeout_ms": delivery_timeout_ms,
            "max_block_ms": _MAX_BLOCK_MS,
            **overrides,
        }
        self._lock = threading.Lock()
        self._away, self._retry_at = "", 0.0
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
            Unavailable: the broker is away. Later is another try.
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
            self._away, self._retry_at = "closed", float("inf")
        if connection is not None:
            _abandon(connection.producer, timeout_s)

    def _usable(self) -> _Connection:
        if self._connection is not None:
            if not self._connection.failure:
                return self._connection
            self._away = self._connection.failure
            _abandon(self._connection.producer, 0.0)
            self._connection = None
        if time.monotonic() < self._retry_at:
            raise Unavailable(f"Kafka at {self._bootstrap_servers} is away: {self._away}")
        try:
            producer = durable_producer(self._bootstrap_servers, **self._config, bootstrap_timeout_ms=_RENEWAL_TIMEOUT_MS)
        except Unavailable as error:
            self._away, self._retry_at = str(error), time.monotonic() + _RENEWAL_PAUSE_S
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
        if not isinstance(error, MessageSizeTooLargeError):
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


def _connected(cls: Any, bootstrap_servers: str, config: Mapping[str, Any]) -> Any:
    """Return cls(**config). Raises Unavailable when there is no broker, and leaves no thread and no descriptor behind then.

    kafka-python (3.0.12) leaks both when a constructor fails, which a process that goes on trying does once a second.
    """
    clients: list[Any] = []

    def client(**arguments: Any) -> Any:
        clients.append(cls.DEFAULT_CONFIG["kafka_client"](**arguments))
        return clients[-1]

    try:
        return cls(**config, kafka_client=client)
    except KafkaError as error:
        for leftover in clients:
            leftover.close()
        raise Unavailable(f"no Kafka broker at {bootstrap_servers}: {error!r}") from error
