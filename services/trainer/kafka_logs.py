"""The logs that the trainer writes and reads back: control.v1, ranker.deltas.v1 and ranker.bases.v1.

Assigned partitions, offsets kept by the caller; an offset out of range is an error with a name (`kafka_calls`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from tunemesh.events.v1.control_pb2 import ControlRecord
from tunemesh.events.v1.delta_pb2 import BasePointer, Delta

from services.common.events.envelope import MalformedRecord, headers_for, parse_value
from services.common.platform.errors import CorruptArtifact, Unavailable
from services.common.platform.kafka import assigned_consumer, drain_to_end, end_offsets
from services.common.platform.kafka_producer import RenewedProducer
from services.common.ranker.delta_chunks import parse_chunk
from services.trainer.kafka_calls import (
    CLIENT_ID,
    DELIVERY_TIMEOUT_MS,
    SOURCE,
    position_of,
    ranges_of,
    translated,
)
from services.trainer.neighbours import HistoryLost
from services.trainer.owner import ANSWER_TIMEOUT_MS
from services.trainer.publisher import PendingAppend

_log = logging.getLogger(__name__)

_APPEND_PAUSE_S = 1.0
_READ_BACK_POLL_MS = 200
_READ_BACK_QUIET_S = 20.0


class KafkaControlLog:
    """control.v1: one partition, read from its beginning."""

    def __init__(self, bootstrap_servers: str, topic: str, producer: RenewedProducer) -> None:
        """Connect.

        Raises:
            Unavailable: no broker or no topic.
        """
        self._topic = topic
        self._partition = TopicPartition(topic, 0)
        self._consumer: KafkaConsumer = assigned_consumer(bootstrap_servers, topic, [0], start="beginning", client_id=CLIENT_ID)
        self._producer = producer

    @property
    def position(self) -> int:
        """Offset behind the last record that `read` covered."""
        with translated(f"reading {self._topic}"):
            return position_of(self._consumer, self._partition)

    def read(self, timeout_ms: int) -> list[tuple[int, ControlRecord]]:
        """Return the records from `position` to the present end; one without a readable value is an empty record, which nobody believes.

        Args:
            timeout_ms: how long each step may wait for the broker.
        Raises:
            HistoryLost: the log is shorter than it was.
            Unavailable: the end was not reached.
        """
        with translated(f"reading {self._topic}"):
            end = end_offsets(self._consumer, timeout_ms)[self._partition]
            position = position_of(self._consumer, self._partition, timeout_ms)
            if end < position:
                raise HistoryLost(f"{self._topic} ends at offset {end}, but the trainer had read to {position}: the broker lost records")
            # The first time it is the whole topic.
            records = drain_to_end(self._consumer, timeout_ms if position else max(timeout_ms, ANSWER_TIMEOUT_MS))
        return [(record.offset, _parse_control(record)) for record in records]

    def append(self, record: ControlRecord) -> int:
        """Write the record and return its offset, acknowledged."""
        headers = headers_for("tunemesh.events.v1.ControlRecord", SOURCE)
        with translated(f"writing {self._topic}"):
            sent = self._producer.send(self._topic, record.SerializeToString(), record.subject.encode(), headers, partition=0)
            return int(sent.get(timeout=2 * DELIVERY_TIMEOUT_MS / 1e3).offset)

    def close(self) -> None:
        """Disconnect the reader."""
        self._consumer.close()


class KafkaDeltaLog:
    """ranker.deltas.v1, one shard's partition."""

    def __init__(self, bootstrap_servers: str, topic: str, shard: int, producer: RenewedProducer) -> None:
        """Nothing is connected but the producer: reading back opens a consumer of its own."""
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._shard = shard
        self._producer = producer

    def append(self, chunks: Sequence[Delta], traceparent: str) -> PendingAppend:
        """Start writing the chunks in order."""
        key = str(self._shard).encode()
        futures: list[Any] = []
        try:
            for part in chunks:
                headers = headers_for("tunemesh.events.v1.Delta", SOURCE, traceparent=traceparent)
                futures.append(self._producer.send(self._topic, part.SerializeToString(), key, headers, partition=self._shard))
        except Unavailable as error:
            # Looked at again only after a while: the broker is down, and trying at every turn would fill the log.
            return _KafkaPending(futures, error, not_before=time.monotonic() + _APPEND_PAUSE_S)
        return _KafkaPending(futures)

    def range(self) -> tuple[int, int]:
        """Return [first offset, next offset)."""
        with self._reader() as (consumer, partition):
            return ranges_of(consumer, [partition])[0]

    def read(self, first: int, end: int) -> Iterator[Delta | None]:
        """Go through the chunks at offsets [first, end), a poll's worth of them in memory; None for a record that is none.

        Raises, when the first one is asked for or later:
            HistoryLost: they are no longer there.
            Unavailable: the broker gives nothing more, though more is there.
        """
        with self._reader() as (consumer, partition):
            held = ranges_of(consumer, [partition])[0]
            if first < held[0] or end > held[1]:
                raise HistoryLost(f"{self._topic} holds offsets {held[0]} to {held[1]}, and {first} to {end} are wanted")
            consumer.seek(partition, first)
            heard_at = time.monotonic()
            while (position := position_of(consumer, partition)) < end:
                records = consumer.poll(timeout_ms=_READ_BACK_POLL_MS).get(partition, [])
                yield from (_parse_delta(record) for record in records if record.offset < end)
                if records:
                    heard_at = time.monotonic()
                elif time.monotonic() - heard_at > _READ_BACK_QUIET_S:
                    raise Unavailable(f"{self._topic} is read back to offset {position} of {end}, and nothing more comes")

    @contextmanager
    def _reader(self) -> Iterator[tuple[KafkaConsumer, TopicPartition]]:
        with translated(f"reading {self._topic}"):
            consumer = assigned_consumer(self._bootstrap_servers, self._topic, [self._shard], start="beginning", client_id=CLIENT_ID)
            try:
                yield consumer, TopicPartition(self._topic, self._shard)
            finally:
                consumer.close()


class _KafkaPending:
    """Futures of one append."""

    def __init__(self, futures: Sequence[Any], error: Unavailable | None = None, *, not_before: float = 0.0) -> None:
        self._futures = futures
        self._error = error
        self._not_before = not_before

    def next_offset(self) -> int | None:
        """Return the offset behind the last record, None while one is unacknowledged.

        Raises:
            Unavailable: one failed.
        """
        if time.monotonic() < self._not_before or not all(future.is_done for future in self._futures):
            return None
        if self._error is not None:
            raise self._error
        failed = next((future.exception for future in self._futures if future.failed()), None)
        if failed is not None:
            raise Unavailable(repr(failed)) from failed
        return int(self._futures[-1].value.offset) + 1

    def wait(self, timeout_ms: int) -> None:
        """Block until all are done, or for at most timeout_ms."""
        deadline = time.monotonic() + timeout_ms / 1e3
        while (now := time.monotonic()) < deadline and (now < self._not_before or not all(future.is_done for future in self._futures)):
            time.sleep(0.002)


class KafkaBaseLog:
    """ranker.bases.v1: pointers to bases, the newest per model counts."""

    def __init__(self, bootstrap_servers: str, topic: str, producer: RenewedProducer) -> None:
        """Nothing is connected but the producer."""
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._producer = producer

    def newest(self, model: str) -> BasePointer | None:
        """Return the model's newest pointer: of the highest epoch, the last one written."""
        with translated(f"reading {self._topic}"):
            consumer = assigned_consumer(self._bootstrap_servers, self._topic, [0], start="beginning", client_id=CLIENT_ID)
            try:
                records = drain_to_end(consumer)
            finally:
                consumer.close()
        mine = [pointer for record in records if (pointer := _parse_pointer(record)) is not None and pointer.model == model]
        return max(reversed(mine), key=lambda pointer: pointer.epoch, default=None)

    def append(self, pointer: BasePointer) -> None:
        """Write the pointer; returns when the broker has acknowledged it."""
        headers = headers_for("tunemesh.events.v1.BasePointer", SOURCE)
        with translated(f"writing {self._topic}"):
            sent = self._producer.send(self._topic, pointer.SerializeToString(), pointer.model.encode(), headers, partition=0)
            sent.get(timeout=2 * DELIVERY_TIMEOUT_MS / 1e3)


def _parse_control(record: Any) -> ControlRecord:
    try:
        return parse_value(record.value, record.headers, ControlRecord) if record.value is not None else ControlRecord()
    except MalformedRecord as error:
        _log.error("%s: the record at offset %d is left out: %s", record.topic, record.offset, error)
        return ControlRecord()


def _parse_pointer(record: Any) -> BasePointer | None:
    try:
        return parse_value(record.value, record.headers, BasePointer) if record.value is not None else None
    except MalformedRecord as error:
        _log.error("%s: the record at offset %d is left out: %s", record.topic, record.offset, error)
        return None


def _parse_delta(record: Any) -> Delta | None:
    try:
        return parse_chunk(record.value)
    except CorruptArtifact as error:
        _log.error("%s: the record at offset %d is left out: %s", record.topic, record.offset, error)
        return None
