"""kafka-python consumers for processes that own their offsets: assigned partitions, no groups, never a silent jump.

Imports in both environments. Knows no topic and no message type.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import KafkaError, UnsupportedCodecError

from services.common.platform.errors import Unavailable
from services.common.platform.kafka_batches import KAFKA_PYTHON_PACKAGES, Decoding, ReadableBatches
from services.common.platform.kafka_connect import connected

Start = Literal["beginning"] | Mapping[int, int]

# The broker answers a fetch after at most this long when too little is there; the embedded one after half of it.
_FETCH_WAIT_MS = 200
_DECODING = Decoding("kafka-python", KAFKA_PYTHON_PACKAGES, UnsupportedCodecError)
# Below this many bytes it waits for more: a request costs a broker more than a record does.
_FETCH_MIN_BYTES = 65_536


class _PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc, unused-ignore] # kafka-python's types are not read
    """The records of one fetch, of batches that are read through `ReadableBatches`."""

    def __init__(self, fetch_offset: int, tp: TopicPartition, records: Any, **config: Any) -> None:
        super().__init__(fetch_offset, tp, ReadableBatches(records, tp.topic, tp.partition, _DECODING), **config)


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
    data, not yet) has the position. The caller must handle that: re-bootstrap, or stop and say so. A batch that cannot be decoded is read
    as services.common.platform.kafka_batches says.

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
    consumer = connected(KafkaConsumer, bootstrap_servers, config)
    # There is no public way to say how a fetch is decoded (kafka-python 3.0.12).
    consumer._fetcher.PartitionRecords = _PartitionRecords
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
    # Without a timeout, `position` waits for ever for a broker that has gone down.
    positions = {partition: consumer.position(partition, timeout_ms=timeout_ms) for partition in consumer.assignment()}
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
    return list(records_to_end(consumer, timeout_ms))


def records_to_end(consumer: KafkaConsumer, timeout_ms: int = 30_000) -> Iterator[Any]:
    """Yield what `drain_to_end` returns, holding one fetch of it at a time.

    Raises:
        Unavailable: for `timeout_ms` nothing came, and the end is not reached.
    """
    ends = end_offsets(consumer, timeout_ms)
    deadline = time.monotonic() + timeout_ms / 1000
    count = 0
    # Without a timeout, `position` waits for ever for a broker that has gone down.
    while behind := [
        at for at, end in ends.items() if consumer.position(at, timeout_ms=timeout_ms) < max(end, consumer.highwater(at) or 0)
    ]:
        if time.monotonic() > deadline:
            raise Unavailable(f"{behind[0].topic} was not read to its end: nothing came for {timeout_ms} ms, {count} records did before")
        for batch in consumer.poll(timeout_ms=_FETCH_WAIT_MS).values():
            count += len(batch)
            yield from batch
            deadline = time.monotonic() + timeout_ms / 1000


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
