"""samples.v1 as the trainer reads it: assigned partitions, offsets kept by the caller; and the dead letters of what it cannot use."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.dead_letters import dead_letter_headers
from services.common.events.envelope import Headers
from services.common.events.undeliverable import shorter
from services.common.platform.errors import Unavailable
from services.common.platform.kafka import assigned_consumer
from services.common.platform.kafka_producer import REFUSALS, RenewedProducer
from services.trainer.kafka_calls import CLIENT_ID, DELIVERY_TIMEOUT_MS, SOURCE, position_of, ranges_of, translated
from services.trainer.neighbours import HistoryLost
from services.trainer.outage import Outage
from services.trainer.owner import LOOK_TIMEOUT_MS

# The embedded broker answers a position behind its end with nothing, for ever, where Kafka says that it is out of range.
_QUIET_BEFORE_CHECK_S = 2.0

_log = logging.getLogger(__name__)


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
            bootstrap_servers, topic, range(num_partitions), start="beginning", client_id=CLIENT_ID
        )
        self._held: set[int] = set()
        self._heard_at = time.monotonic()

    def ranges(self) -> list[tuple[int, int]]:
        """Return [first offset, next offset) per partition."""
        with translated(f"reading the offsets of {self._topic}"):
            return ranges_of(self._consumer, self._partitions)

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
        with translated(f"reading {self._topic}"):
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
        with translated(f"reading {self._topic}"):
            return [position_of(self._consumer, partition) for partition in self._partitions]

    def _check_positions(self) -> None:
        for partition, (first, end) in zip(self._partitions, ranges_of(self._consumer, self._partitions, LOOK_TIMEOUT_MS), strict=True):
            position = position_of(self._consumer, partition)
            if not first <= position <= end:
                raise HistoryLost(
                    f"{self._topic}[{partition.partition}] holds offsets {first} to {end}, but the trainer reads at {position}"
                )

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()


class KafkaDeadLetters:
    """The dead-letter topic of samples.v1. One thread sends, one flushes."""

    def __init__(self, topic: str, producer: RenewedProducer) -> None:
        """Nothing is connected but the producer."""
        self._topic = topic
        self._producer = producer
        # What the producer could not even take is sent by `flush`.
        self._unacknowledged: deque[tuple[DeadLetter, Any | None]] = deque()
        self._outage = Outage("dead letters cannot be written")

    def send(self, letter: DeadLetter) -> None:
        """Start writing the letter; while the producer cannot take it, it waits for `flush`."""
        try:
            sent = self._send(letter)
        except Unavailable as error:
            self._outage.note(error)
            sent = None
        self._unacknowledged.append((letter, sent))

    def flush(self) -> None:
        """Return when every letter sent before has been acknowledged.

        Raises:
            Unavailable: one was not. It is sent again; flush again.
        """
        while self._unacknowledged:
            letter, sent = self._unacknowledged[0]
            try:
                self._await(letter, sent)
            except REFUSALS:
                self._settle_refused(letter)
            self._unacknowledged.popleft()
        self._outage.end()

    def _await(self, letter: DeadLetter, sent: Any | None) -> None:
        """Return when the oldest letter has been acknowledged; `sent` is None when it has not been sent yet."""
        if sent is None:
            sent = self._send(letter)
        # Sent again after anything but an acknowledgement.
        self._unacknowledged[0] = letter, None
        try:
            sent.get(timeout=2 * DELIVERY_TIMEOUT_MS / 1e3)
        except REFUSALS:
            raise
        except KafkaError as error:
            raise Unavailable(f"a dead letter was not written to {self._topic}: {error!r}") from error

    def _settle_refused(self, letter: DeadLetter) -> None:
        """Write a letter that the broker refused, in company perhaps: alone, then shorter, or else drop it."""
        while True:
            try:
                return self._await(letter, None)
            except REFUSALS as error:
                less = shorter(letter, repr(error))
                if less is None:
                    _log.error("a dead letter for %s is dropped, the broker refuses it (%r): %s", self._topic, error, letter.detail[:200])
                    return None
                letter = less

    def _send(self, letter: DeadLetter) -> Any:
        headers = dead_letter_headers(letter, SOURCE)
        with translated(f"writing {self._topic}"):
            return self._producer.send(self._topic, letter.SerializeToString(), letter.key or None, headers)
