"""The topics that the quality stream reads, and quality.v1, which it writes. Assigned partitions, no group, nothing committed: what comes
while the process is down is in no window.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from services.common.events.envelope import headers_for
from services.common.events.topics import QUALITY
from services.common.platform.clock import wall_ms
from services.common.platform.errors import Unavailable
from services.common.platform.kafka import assigned_consumer
from services.common.platform.kafka_compression import Compression
from services.common.platform.kafka_producer import durable_producer
from streams.quality.codec import RECALLED, SOURCES, to_message
from streams.quality.core import Window

_BOOTSTRAP_MS = 5_000
_CLIENT = "quality"
# Replicas report every second or so; the others are read from their end.
_RECALL_OTHERS_MS = 3_000

_log = logging.getLogger(__name__)


class QualityLog:
    """Reads the sources and writes quality.v1. One thread at a time.

    Attributes:
        started_ms: records older than this (Unix milliseconds) are from before the start.
    """

    def __init__(self, bootstrap_servers: str, *, recall_ms: int, compression: Compression = "none") -> None:
        """Connect.

        Raises:
            Unavailable: no broker, or a topic does not exist.
        """
        self.started_ms = wall_ms()
        self._producer: KafkaProducer = durable_producer(bootstrap_servers, client_id=_CLIENT, compression=compression)
        try:
            self._consumer = self._open(bootstrap_servers, recall_ms)
        except BaseException:
            self._producer.close(timeout=1)
            raise

    def _open(self, bootstrap_servers: str, recall_ms: int) -> KafkaConsumer:
        consumer = assigned_consumer(
            bootstrap_servers,
            SOURCES[0],
            start="beginning",
            client_id=_CLIENT,
            bootstrap_timeout_ms=_BOOTSTRAP_MS,
        )
        try:
            partitions = [TopicPartition(topic, number) for topic in SOURCES for number in _numbers(consumer, topic)]
            consumer.assign(partitions)
            self._seek(consumer, partitions, recall_ms)
        except BaseException as error:
            consumer.close()
            if isinstance(error, KafkaError):
                raise Unavailable(f"Kafka at {bootstrap_servers} does not tell where its topics end: {error!r}") from error
            raise
        return consumer

    def _seek(self, consumer: KafkaConsumer, partitions: Sequence[TopicPartition], recall_ms: int) -> None:
        """Raises Unavailable when an end is not told in time."""
        since = {at: self.started_ms - (recall_ms if at.topic in RECALLED else _RECALL_OTHERS_MS) for at in partitions}
        at_end = []
        for at, found in consumer.offsets_for_times(since).items():
            if found is None or found.timestamp < 0:  # nothing so late: Kafka says None, the embedded broker offset 0 with timestamp -1
                at_end.append(at)
            else:
                consumer.seek(at, found.offset)
        if at_end:
            # seek_to_end alone asks for the end with the first poll, and what came until then would be skipped.
            consumer.seek_to_end(*at_end)
        for at in at_end:
            if consumer.position(at, timeout_ms=_BOOTSTRAP_MS) is None:
                raise Unavailable(f"Kafka does not tell where {at.topic}[{at.partition}] ends")

    def poll(self, timeout_ms: int) -> Iterator[Any]:
        """Yield what came, waiting for at most `timeout_ms` for the first.

        Raises:
            Unavailable: the broker lost its data or refuses. Connect anew.
        """
        try:
            batches = self._consumer.poll(timeout_ms=timeout_ms)
        except KafkaError as error:
            raise Unavailable(f"Kafka cannot be read: {error!r}") from error
        for batch in batches.values():
            yield from batch

    def publish(self, windows: Sequence[Window]) -> None:
        """Send windows without waiting; what the broker does not take is lost, and the log says so.

        Raises:
            Unavailable: the producer's buffer is full, or it is not connected. Connect anew.
        """
        for window in windows:
            headers = headers_for(QUALITY.value, "/tunemesh/quality", time_ms=window.end_ms)
            try:
                sent = self._producer.send(
                    QUALITY.name, key=window.key.variant.encode(), value=to_message(window).SerializeToString(), headers=headers
                )
            except KafkaError as error:
                raise Unavailable(f"a window could not be sent: {error!r}") from error
            sent.add_errback(lambda error: _log.warning("a window was not written to %s: %r", QUALITY.name, error))

    def close(self) -> None:
        """Close; windows that are under way get a moment."""
        self._consumer.close()
        self._producer.close(timeout=2)


def _numbers(consumer: KafkaConsumer, topic: str) -> list[int]:
    found = consumer.partitions_for_topic(topic)
    if not found:
        raise Unavailable(f"topic {topic} does not exist: create the topics first (`tunemesh topics`)")
    return sorted(found)
