"""kafka-python helpers for processes that own their offsets: assigned partitions, no groups, never a silent jump.

Imports in both environments; asyncio processes of the light one produce with `services.common.kafka_async`. Knows no topic and no
message type.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from services.common.errors import Unavailable

Start = Literal["beginning", "end"] | Mapping[int, int]

# The broker answers a fetch after at most this long when nothing new is there.
_FETCH_WAIT_MS = 100


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
        start: "beginning", "end", or the next offset per partition (partitions that are absent from it start at their beginning).
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
        "max_poll_records": 2_000,
        "reconnect_backoff_max_ms": 1_000,
        "bootstrap_timeout_ms": bootstrap_timeout_ms,
        "metrics_enabled": False,
        **overrides,
    }
    try:
        consumer = KafkaConsumer(**config)
    except KafkaError as error:
        raise Unavailable(f"no Kafka broker at {bootstrap_servers}: {error!r}") from error
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
    if start == "end":
        consumer.seek_to_end(*assignment)
        return
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


def drain_to_end(consumer: KafkaConsumer, timeout_ms: int = 30_000) -> list[Any]:
    """Return every record from the consumer's positions up to the ends that its partitions have now, in offset order per partition.

    Raises:
        Unavailable: the end was not reached in time.
    """
    ends: dict[TopicPartition, int] = consumer.end_offsets(list(consumer.assignment()))
    deadline = time.monotonic() + timeout_ms / 1000
    records: list[Any] = []
    behind = {partition for partition, end in ends.items() if consumer.position(partition) < end}
    while behind:
        if time.monotonic() > deadline:
            raise Unavailable(f"the end of {sorted(behind)[0].topic} was not reached in {timeout_ms} ms")
        for partition, batch in consumer.poll(timeout_ms=_FETCH_WAIT_MS).items():
            records.extend(record for record in batch if record.offset < ends[partition])
        behind = {partition for partition in behind if consumer.position(partition) < ends[partition]}
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
    try:
        return KafkaProducer(**config)
    except KafkaError as error:
        raise Unavailable(f"no Kafka broker at {bootstrap_servers}: {error!r}") from error
