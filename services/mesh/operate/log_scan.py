"""Bounded reading of Kafka topics by time: what was appended between two moments, of one key's partition or of all.

Knows no topic and no message type. Never commits, is in no group, and changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from kafka import KafkaConsumer
from kafka.errors import KafkaError

from services.common.platform.errors import Unavailable
from services.common.platform.kafka import assigned_consumer, end_offsets
from services.common.platform.partitioning import partition_of

FoundT = TypeVar("FoundT")

_POLL_MS = 200


@dataclass(slots=True)
class Scan(Generic[FoundT]):
    """What a scan found, how many records it read, and whether it had to stop at its limit before the end."""

    found: list[FoundT] = field(default_factory=list)
    num_read: int = 0
    is_cut: bool = False


class LogScanner:
    """Reads one broker's topics. Each scan has a consumer of its own."""

    def __init__(self, bootstrap_servers: str, *, timeout_ms: int, max_records: int) -> None:
        """`max_records` bounds every scan; `timeout_ms` bounds the wait for the broker's next answer."""
        self._bootstrap = bootstrap_servers
        self._timeout_ms = timeout_ms
        self._max_records = max_records

    def scan(
        self,
        topic: str,
        find: Callable[[Any], FoundT | None],
        *,
        since_ms: int = 0,
        until_ms: int | None = None,
        key: str | None = None,
        only_first: bool = False,
    ) -> Scan[FoundT]:
        """Return what `find` makes of the records appended from `since_ms` to `until_ms`, None left out, in offset order per partition.

        Args:
            topic: its name.
            find: gets a kafka-python ConsumerRecord.
            since_ms: Unix milliseconds; 0 is the beginning.
            until_ms: later records are left out; None: the present end.
            key: read only the partition where the records of this key are; None reads all.
            only_first: stop at the first one found.
        Raises:
            Unavailable: no broker, no such topic, or no answer in time.
        """
        consumer = self._open(topic, key)
        try:
            self._seek(consumer, since_ms)
            return self._read(consumer, find, until_ms, only_first)
        except KafkaError as error:
            raise Unavailable(f"reading topic {topic} at {self._bootstrap} failed: {error!r}") from error
        finally:
            consumer.close()

    def _open(self, topic: str, key: str | None) -> KafkaConsumer:
        consumer = assigned_consumer(
            self._bootstrap,
            topic,
            start="beginning",
            client_id="tunemesh-operate",
            bootstrap_timeout_ms=self._timeout_ms,
            fetch_min_bytes=1,
        )
        if key is not None:
            partitions = sorted(consumer.assignment())
            consumer.assign([partitions[partition_of(key.encode(), len(partitions))]])
            consumer.seek_to_beginning()
        return consumer

    def _seek(self, consumer: KafkaConsumer, since_ms: int) -> None:
        if since_ms <= 0:
            return
        starts = consumer.offsets_for_times(dict.fromkeys(consumer.assignment(), since_ms))
        ends = end_offsets(consumer, self._timeout_ms)
        for partition, start in starts.items():
            # No record so late: Kafka says None, the embedded broker offset 0 with timestamp -1.
            consumer.seek(partition, ends[partition] if start is None or start.timestamp < 0 else start.offset)

    def _read(self, consumer: KafkaConsumer, find: Callable[[Any], FoundT | None], until_ms: int | None, only_first: bool) -> Scan[FoundT]:
        scan: Scan[FoundT] = Scan()
        for record in self._records(consumer, until_ms):
            if scan.num_read >= self._max_records:
                scan.is_cut = True
                break
            scan.num_read += 1
            found = find(record)
            if found is not None:
                scan.found.append(found)
                if only_first:
                    break
        return scan

    def _records(self, consumer: KafkaConsumer, until_ms: int | None) -> Iterator[Any]:
        """Yield what lies between the consumer's positions and the present ends, partition by partition up to `until_ms`."""
        ends = end_offsets(consumer, self._timeout_ms)
        last_answer = time.monotonic()
        while unread := {
            at
            for at, end in ends.items()
            if at not in consumer.paused() and (consumer.position(at, timeout_ms=self._timeout_ms) or 0) < end
        }:
            for partition, records in consumer.poll(timeout_ms=_POLL_MS).items():
                last_answer = time.monotonic()
                for record in records:
                    if record.offset >= ends[partition] or (until_ms is not None and record.timestamp > until_ms):
                        consumer.pause(partition)
                        break
                    yield record
            if time.monotonic() - last_answer > self._timeout_ms / 1e3:
                raise Unavailable(f"{self._bootstrap} has sent nothing of {next(iter(unread)).topic} for {self._timeout_ms} ms")
