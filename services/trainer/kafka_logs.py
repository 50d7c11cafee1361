"""The trainer's side of Kafka: assigned partitions, offsets kept by the caller, an offset out of range is an error with a name.

Every consumer runs with auto_offset_reset=none. Errors of the client library become `Unavailable` (the broker does not answer) or
`HistoryLost` (it answers, but no longer has what it had).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError
from tunemesh.events.v1.control_pb2 import ControlRecord
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter
from tunemesh.events.v1.delta_pb2 import BasePointer, Delta

from services.common.events.dead_letters import dead_letter_headers
from services.common.events.envelope import Headers, headers_for
from services.common.platform.errors import Unavailable
from services.common.platform.kafka import RenewedProducer, assigned_consumer, drain_to_end, end_offsets
from services.trainer.neighbours import HistoryLost
from services.trainer.publisher import PendingAppend

SOURCE = "/tunemesh/trainer"
_CLIENT_ID = "tunemesh-trainer"
_DELIVERY_TIMEOUT_MS = 10_000
# The embedded broker answers a position behind its end with nothing, for ever, where Kafka says that it is out of range.
_QUIET_BEFORE_CHECK_S = 2.0
# How long one look at the broker may block the worker, and with it the control API.
_LOOK_TIMEOUT_MS = 2_000
_FIRST_READ_TIMEOUT_MS = 20_000
_APPEND_PAUSE_S = 1.0
_READ_BACK_POLL_MS = 200
_READ_BACK_QUIET_S = 20.0


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except OffsetOutOfRangeError as error:
        raise HistoryLost(f"{what}: an offset is out of range ({error})") from error
    except KafkaError as error:
        raise Unavailable(f"{what}: {error!r}") from error


def make_producer(bootstrap_servers: str) -> RenewedProducer:
    """Return the one producer that all of the trainer's logs share; it is thread-safe, and outlives the broker's absence."""
    return RenewedProducer(bootstrap_servers, client_id=_CLIENT_ID, delivery_timeout_ms=_DELIVERY_TIMEOUT_MS, linger_ms=0)


@dataclass(frozen=True, slots=True)
class RawSample:
    """One record of samples.v1 as it lies there."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class KafkaSamples:
    """samples.v1: all partitions, assigned."""

    def __init__(self, bootstrap_servers: str, topic: str, num_partitions: int) -> None:
        """Connect; nothing is read before `seek`.

        Raises:
            Unavailable: no broker, or the topic lacks a partition.
        """
        self._topic = topic
        self._partitions = [TopicPartition(topic, partition) for partition in range(num_partitions)]
        self._consumer: KafkaConsumer = assigned_consumer(
            bootstrap_servers, topic, range(num_partitions), start="beginning", client_id=_CLIENT_ID
        )
        self._held: set[int] = set()
        self._heard_at = time.monotonic()

    def ranges(self) -> list[tuple[int, int]]:
        """Return [first offset, next offset) per partition."""
        with _translated(f"reading the offsets of {self._topic}"):
            return _ranges(self._consumer, self._partitions)

    def seek(self, offsets: Sequence[int]) -> None:
        """Read on from these offsets, one per partition."""
        for partition, offset in zip(self._partitions, offsets, strict=True):
            self._consumer.seek(partition, offset)

    def hold(self, partitions: Collection[int]) -> None:
        """Fetch nothing from these partitions until they are not named any more."""
        wanted = set(partitions)
        for partition in self._partitions:
            if partition.partition in wanted - self._held:
                self._consumer.pause(partition)
            elif partition.partition in self._held - wanted:
                self._consumer.resume(partition)
        self._held = wanted

    def poll(self, timeout_ms: int) -> list[RawSample]:
        """Return what has come, in offset order per partition; waits at most timeout_ms for something.

        Raises:
            HistoryLost: a position is no longer, or not yet, in the log.
        """
        with _translated(f"reading {self._topic}"):
            polled: Mapping[TopicPartition, list[Any]] = self._consumer.poll(timeout_ms=timeout_ms)
            if polled:
                self._heard_at = time.monotonic()
            elif time.monotonic() - self._heard_at > _QUIET_BEFORE_CHECK_S:
                self._heard_at = time.monotonic()
                self._check_positions()
        return [
            RawSample(partition.partition, record.offset, record.key, record.value, record.headers)
            for partition, records in polled.items()
            for record in records
        ]

    def read_to(self) -> list[int]:
        """Return per partition the offset behind all that `poll` has returned, and behind what it will never return."""
        with _translated(f"reading {self._topic}"):
            return [_position(self._consumer, partition) for partition in self._partitions]

    def _check_positions(self) -> None:
        for partition, (first, end) in zip(self._partitions, _ranges(self._consumer, self._partitions, _LOOK_TIMEOUT_MS), strict=True):
            position = _position(self._consumer, partition)
            if not first <= position <= end:
                raise HistoryLost(f"{self._topic}[{partition.partition}] holds offsets {first} to {end}, and was being read at {position}")

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()


class KafkaControlLog:
    """control.v1: one partition, read from its beginning."""

    def __init__(self, bootstrap_servers: str, topic: str, producer: RenewedProducer) -> None:
        """Connect.

        Raises:
            Unavailable: no broker or no topic.
        """
        self._topic = topic
        self._partition = TopicPartition(topic, 0)
        self._consumer: KafkaConsumer = assigned_consumer(bootstrap_servers, topic, [0], start="beginning", client_id=_CLIENT_ID)
        self._producer = producer

    @property
    def position(self) -> int:
        """Offset behind the last record that `read` covered."""
        with _translated(f"reading {self._topic}"):
            return _position(self._consumer, self._partition)

    def read(self) -> list[tuple[int, ControlRecord]]:
        """Return the records from `position` to the present end.

        Raises:
            HistoryLost: the log is shorter than it was.
            Unavailable: the end was not reached.
        """
        with _translated(f"reading {self._topic}"):
            end = end_offsets(self._consumer, _LOOK_TIMEOUT_MS)[self._partition]
            position = _position(self._consumer, self._partition)
            if end < position:
                raise HistoryLost(f"{self._topic} ends at offset {end}, and had been read to {position}")
            # The first time it is the whole topic.
            records = drain_to_end(self._consumer, _LOOK_TIMEOUT_MS if position else _FIRST_READ_TIMEOUT_MS)
        return [(record.offset, ControlRecord.FromString(record.value)) for record in records if record.value is not None]

    def append(self, record: ControlRecord) -> int:
        """Write the record and return its offset, acknowledged."""
        headers = headers_for("tunemesh.events.v1.ControlRecord", SOURCE)
        with _translated(f"writing {self._topic}"):
            sent = self._producer.send(self._topic, record.SerializeToString(), record.subject.encode(), headers, partition=0)
            return int(sent.get(timeout=2 * _DELIVERY_TIMEOUT_MS / 1e3).offset)

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
            # Looked at again only after a while: the broker is away, and trying at every turn would fill the log.
            return _KafkaPending(futures, error, not_before=time.monotonic() + _APPEND_PAUSE_S)
        return _KafkaPending(futures)

    def range(self) -> tuple[int, int]:
        """Return [first offset, next offset)."""
        with self._reader() as (consumer, partition):
            return _ranges(consumer, [partition])[0]

    def read(self, first: int, end: int) -> Iterator[Delta]:
        """Go through the chunks at offsets [first, end), a poll's worth of them in memory.

        Raises, when the first one is asked for or later:
            HistoryLost: they are no longer there.
            Unavailable: the broker gives nothing more, though more is there.
        """
        with self._reader() as (consumer, partition):
            held = _ranges(consumer, [partition])[0]
            if first < held[0] or end > held[1]:
                raise HistoryLost(f"{self._topic} holds offsets {held[0]} to {held[1]}, and {first} to {end} are wanted")
            consumer.seek(partition, first)
            heard_at = time.monotonic()
            while (position := _position(consumer, partition)) < end:
                records = consumer.poll(timeout_ms=_READ_BACK_POLL_MS).get(partition, [])
                yield from (Delta.FromString(record.value) for record in records if record.offset < end)
                if records:
                    heard_at = time.monotonic()
                elif time.monotonic() - heard_at > _READ_BACK_QUIET_S:
                    raise Unavailable(f"{self._topic} is read back to offset {position} of {end}, and nothing more comes")

    @contextmanager
    def _reader(self) -> Iterator[tuple[KafkaConsumer, TopicPartition]]:
        with _translated(f"reading {self._topic}"):
            consumer = assigned_consumer(self._bootstrap_servers, self._topic, [self._shard], start="beginning", client_id=_CLIENT_ID)
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
        with _translated(f"reading {self._topic}"):
            consumer = assigned_consumer(self._bootstrap_servers, self._topic, [0], start="beginning", client_id=_CLIENT_ID)
            try:
                records = drain_to_end(consumer)
            finally:
                consumer.close()
        pointers = [BasePointer.FromString(record.value) for record in records if record.value is not None]
        mine = [pointer for pointer in pointers if pointer.model == model]
        return max(reversed(mine), key=lambda pointer: pointer.epoch, default=None)

    def append(self, pointer: BasePointer) -> None:
        """Write the pointer; returns when the broker has acknowledged it."""
        headers = headers_for("tunemesh.events.v1.BasePointer", SOURCE)
        with _translated(f"writing {self._topic}"):
            sent = self._producer.send(self._topic, pointer.SerializeToString(), pointer.model.encode(), headers, partition=0)
            sent.get(timeout=2 * _DELIVERY_TIMEOUT_MS / 1e3)


class KafkaDeadLetters:
    """The dead-letter topic of samples.v1. One thread sends, one flushes."""

    def __init__(self, topic: str, producer: RenewedProducer) -> None:
        """Nothing is connected but the producer."""
        self._topic = topic
        self._producer = producer
        self._unacknowledged: deque[tuple[DeadLetter, Any]] = deque()

    def send(self, letter: DeadLetter) -> None:
        """Start writing the letter.

        Raises:
            Unavailable: the producer cannot take it.
        """
        self._unacknowledged.append((letter, self._send(letter)))

    def flush(self) -> None:
        """Return when every letter sent before has been acknowledged.

        Raises:
            Unavailable: one was not. It is sent again; flush again.
        """
        while self._unacknowledged:
            letter, sent = self._unacknowledged[0]
            try:
                sent.get(timeout=2 * _DELIVERY_TIMEOUT_MS / 1e3)
            except KafkaError as error:
                self._unacknowledged[0] = letter, self._send(letter)
                raise Unavailable(f"a dead letter was not written to {self._topic}: {error!r}") from error
            self._unacknowledged.popleft()

    def _send(self, letter: DeadLetter) -> Any:
        headers = dead_letter_headers(letter, SOURCE)
        with _translated(f"writing {self._topic}"):
            return self._producer.send(self._topic, letter.SerializeToString(), letter.key or None, headers)


def _position(consumer: KafkaConsumer, partition: TopicPartition) -> int:
    # Without a timeout it waits for ever for a broker that was there and is away.
    return int(consumer.position(partition, timeout_ms=_LOOK_TIMEOUT_MS))


def _ranges(
    consumer: KafkaConsumer, partitions: Sequence[TopicPartition], timeout_ms: int = _FIRST_READ_TIMEOUT_MS
) -> list[tuple[int, int]]:
    first, end = consumer.beginning_offsets(list(partitions), timeout_ms=timeout_ms), end_offsets(consumer, timeout_ms)
    return [(int(first[partition]), int(end[partition])) for partition in partitions]
