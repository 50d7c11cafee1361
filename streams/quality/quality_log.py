"""The topics that the quality stream reads, and quality.v1, which it writes. Assigned partitions, no group, nothing committed: what comes
while the process is down is in no window.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from services.common.events.envelope import headers_for
from services.common.events.topics import QUALITY
from services.common.events.undeliverable import Undeliverable
from services.common.platform.clock import wall_ms
from services.common.platform.errors import Unavailable
from services.common.platform.kafka import assigned_consumer
from services.common.platform.kafka_batches import KAFKA_PYTHON_PACKAGES
from services.common.platform.kafka_compression import Compression, compression_type
from services.common.platform.kafka_producer import send_each
from services.common.platform.kafka_record import Record
from streams.quality.codec import RECALLED, SOURCES, to_message
from streams.quality.core import Window

_BOOTSTRAP_MS = 5_000
_CLIENT = "quality"
# Nothing is read meanwhile.
_SEND_TIMEOUT_S = 5.0
# Replicas report every second or so; the others are read from their end.
_RECALL_OTHERS_MS = 3_000

_log = logging.getLogger(__name__)


class QualityLog:
    """Reads the sources and writes quality.v1, over a connection of its own each time: a window is long. One thread at a time.

    Attributes:
        started_ms: records older than this (Unix milliseconds) are from before the start.
    """

    def __init__(self, bootstrap_servers: str, undeliverable: Undeliverable, *, recall_ms: int, compression: Compression = "none") -> None:
        """Connect. `undeliverable` is the process's.

        Raises:
            Unavailable: no broker, or a topic does not exist.
            ConfigurationError: the compression's package is not installed.
        """
        compression_type(compression, KAFKA_PYTHON_PACKAGES)  # said now and not by the first window
        self.started_ms = wall_ms()
        self._bootstrap_servers, self._undeliverable, self._compression = bootstrap_servers, undeliverable, compression
        self._consumer = self._open(bootstrap_servers, recall_ms)

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
        """Write windows, a dead letter in place of one that is refused; what is not acknowledged is lost, and the log says so.

        Raises:
            Unavailable: no broker. Connect anew.
        """
        if not windows:
            return
        lost = self._undeliverable.send_from_thread(self._send, [_to_record(window) for window in windows])
        if lost:
            _log.warning("%d of %d windows were not written to %s: %r", len(lost), len(windows), QUALITY.name, lost[0][1])

    def _send(self, records: Sequence[Record]) -> list[KafkaError | None]:
        return send_each(self._bootstrap_servers, records, client_id=_CLIENT, timeout_s=_SEND_TIMEOUT_S, compression=self._compression)

    def close(self) -> None:
        """Close."""
        self._consumer.close()


def _to_record(window: Window) -> Record:
    headers = headers_for(QUALITY.value, "/tunemesh/quality", time_ms=window.end_ms)
    return Record(QUALITY.name, window.key.variant.encode(), to_message(window).SerializeToString(), headers)


def _numbers(consumer: KafkaConsumer, topic: str) -> list[int]:
    found = consumer.partitions_for_topic(topic)
    if not found:
        raise Unavailable(f"topic {topic} does not exist: create the topics first (`tunemesh topics`)")
    return sorted(found)
