"""What a stream asks about Kafka's logs beside its consumer: where they end, what a group committed, what their last records are.

Knows no topic and no event.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, UnknownError, UnsupportedVersionError
from aiokafka.structs import TopicPartition
from kafka import KafkaAdminClient
from kafka.errors import KafkaError as KafkaErrorOfPython

from services.common.platform.errors import ConfigurationError, Unavailable
from services.common.platform.kafka_async_batches import read_through_readable_batches

_TAIL_RECORDS = 500
_POLL_MS = 200
_FETCH_WAIT_MS = 40
FOLLOWING_WAIT_MS = 200
_TIMEOUT_S = 30.0

FoundT = TypeVar("FoundT")

_log = logging.getLogger(__name__)


class LogReader:
    """Asks a broker. It joins no group and is assigned nothing; `group` is only the one whose commits it looks up."""

    def __init__(self, bootstrap_servers: str, group: str) -> None:
        """Nothing is connected before `start`."""
        self._bootstrap = bootstrap_servers
        self._group = group
        self._asking: AIOKafkaConsumer | None = None

    def new_consumer(self, group: str | None = None, *, fetch_wait_ms: int = _FETCH_WAIT_MS) -> AIOKafkaConsumer:
        """Return a consumer that is to be started and assigned; it never commits and never jumps.

        Args:
            group: whose commits it looks up; None: nobody's.
            fetch_wait_ms: how long the broker may hold a fetch that finds nothing. Whoever asks now and then wants its answer soon; whoever
                follows a quiet topic for ever costs itself and the broker a fetch in this time (`FOLLOWING_WAIT_MS`).
        """
        read_through_readable_batches()
        return AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            client_id=f"{self._group}-reader",
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=fetch_wait_ms,
            request_timeout_ms=10_000,
        )

    async def start(self) -> None:
        """Connect; does nothing when it is connected.

        Raises:
            Unavailable: no broker.
        """
        if self._asking is not None:
            return
        consumer = self.new_consumer(self._group)
        try:
            await consumer.start()
        except (KafkaError, OSError) as error:
            await consumer.stop()
            raise Unavailable(f"no Kafka broker at {self._bootstrap} (KAFKA_BOOTSTRAP_SERVERS): {error!r}") from error
        self._asking = consumer

    async def stop(self) -> None:
        """Close."""
        if self._asking is not None:
            await self._asking.stop()

    @property
    def _consumer(self) -> AIOKafkaConsumer:
        assert self._asking is not None, "asked before start"
        return self._asking

    async def check_partitions(self, topics: Sequence[str], num_partitions: int | None = None) -> None:
        """Check that topics exist and, when a number is given, that they have so many partitions.

        Raises:
            Unavailable: no broker, or a topic does not exist.
            ConfigurationError: a topic has another number of partitions.
        """
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap, client_id=f"{self._group}-admin", request_timeout_ms=10_000)
        try:
            await admin.start()
            described = await admin.describe_topics(list(topics))
        except (KafkaError, OSError) as error:
            raise Unavailable(f"no Kafka broker at {self._bootstrap} (KAFKA_BOOTSTRAP_SERVERS): {error!r}") from error
        finally:
            await admin.close()
        found = {topic["topic"]: len(topic["partitions"]) for topic in described if topic["error_code"] == 0}
        for topic in topics:
            if not found.get(topic):
                raise Unavailable(f"topic {topic} does not exist at {self._bootstrap}: create the topics first (`tunemesh topics`)")
            if num_partitions is not None and found[topic] != num_partitions:
                raise ConfigurationError(
                    f"topic {topic} has {found[topic]} partition(s), TUNEMESH_USER_PARTITIONS is {num_partitions}: make them equal"
                )

    async def incarnation(self, topic: str) -> int:
        """Return a number from 1 to 2^64 - 1 that names this topic of this broker: another one when either was made anew. 0: not known.

        It hashes the ids that the broker gives its cluster and the topic. aiokafka reads neither, so kafka-python asks.
        """
        try:
            return await asyncio.to_thread(_incarnation, self._bootstrap, f"{self._group}-admin", topic)
        except (KafkaError, OSError) as error:
            _log.warning("%s: the broker did not say which topic this is: %r", topic, error)
            return 0

    async def ends(self, partitions: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Return the ends of the partitions as the broker says now; empty when it does not answer.

        The embedded broker says the first offset of the last batch plus one (findings/tansu_list_offsets.sh), which is too little when that
        batch holds more than one record. `last_end` reads the batch.
        """
        try:
            found = await self._consumer.end_offsets([TopicPartition(topic, partition) for topic, partition in partitions])
        except KafkaError as error:
            _log.warning("the broker did not say where the logs end: %r", error)
            return {}
        return {(at.topic, at.partition): offset for at, offset in found.items()}

    async def start_offset(self, topic: str, partition: int) -> int:
        """Return where the group takes the partition up: its commit, or the log's beginning when that is later or nothing is committed."""
        at = TopicPartition(topic, partition)
        committed: int | None = await self._consumer.committed(at)
        beginning: int = (await self._consumer.beginning_offsets([at]))[at]
        if committed is None:
            return beginning
        if committed < beginning:
            _log.error(
                "%s[%d]: records %d to %d were deleted by the broker before they were read", topic, partition, committed, beginning - 1
            )
        return max(beginning, committed)

    async def beginning(self, topic: str, partition: int) -> int:
        """Return the first offset that a partition still has."""
        at = TopicPartition(topic, partition)
        found: int = (await self._consumer.beginning_offsets([at]))[at]
        return found

    async def last_end(self, topic: str, partition: int) -> int:
        """Return the end of a partition, exactly."""
        consumer, at = await self._assigned(topic, partition)
        try:
            beginning, end = await _bounds(consumer, at)
            if end > beginning:
                await _newest(consumer, at, end - 1, end, lambda _: None)
            return max(end, consumer.highwater(at) or 0)
        finally:
            await consumer.stop()

    async def offset_at(self, topic: str, partition: int, time_ms: int) -> int:
        """Return the offset of the first record written at or after a time (Unix milliseconds); where the broker cannot say, the beginning.

        Raises:
            Unavailable: the broker does not answer.
        """
        at = TopicPartition(topic, partition)
        try:
            beginning: int = (await self._consumer.beginning_offsets([at]))[at]
            found = (await self._consumer.offsets_for_times({at: max(time_ms, 0)})).get(at)
        except (UnsupportedVersionError, UnknownError) as error:
            _log.warning("the broker does not find offsets by time: %r", error)
            return beginning
        except KafkaError as error:
            raise Unavailable(f"{topic}[{partition}]: the broker did not say where a time begins: {error!r}") from error
        # None: nothing was written since. The embedded broker says 0 then (findings/tansu_offsets_for_times.sh): more is read than need be.
        return (await self.last_end(topic, partition)) if found is None else max(beginning, found.offset)

    async def read_between(self, topic: str, partition: int, start: int, end: int, take: Callable[[Any], None]) -> None:
        """Hand over the records with offsets from `start` to below `end` that the log still has, in order.

        Raises:
            Unavailable: nothing comes for half a minute.
        """
        consumer, at = await self._assigned(topic, partition)
        try:
            beginning, _ = await _bounds(consumer, at)
            if max(beginning, start) >= end:
                return
            consumer.seek(at, max(beginning, start))
            deadline = time.monotonic() + _TIMEOUT_S
            while await consumer.position(at) < end:
                records = (await consumer.getmany(at, timeout_ms=_POLL_MS)).get(at, ())
                for record in records:
                    if start <= record.offset < end:
                        take(record)
                if records:
                    deadline = time.monotonic() + _TIMEOUT_S
                elif time.monotonic() > deadline:
                    raise Unavailable(f"{topic}[{partition}] could not be read from {start} to {end}: nothing came for {_TIMEOUT_S:.0f} s")
        finally:
            await consumer.stop()

    async def find_last(self, topic: str, partition: int, find: Callable[[Any], FoundT | None]) -> FoundT | None:
        """Return what `find` makes of the newest record for which it does not return None; reads backwards in strides."""
        consumer, at = await self._assigned(topic, partition)
        try:
            beginning, end = await _bounds(consumer, at)
            start = end
            while start > beginning:
                start = max(beginning, start - _TAIL_RECORDS)
                newest = await _newest(consumer, at, start, end, find)
                if newest is not None:
                    return newest
            return None
        finally:
            await consumer.stop()

    async def _assigned(self, topic: str, partition: int) -> tuple[AIOKafkaConsumer, TopicPartition]:
        consumer, at = self.new_consumer(), TopicPartition(topic, partition)
        await consumer.start()
        consumer.assign([at])
        return consumer, at


def _incarnation(bootstrap_servers: str, client_id: str, topic: str) -> int:
    try:
        admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers, client_id=client_id, request_timeout_ms=10_000)
        try:
            cluster = admin.describe_cluster().get("cluster_id")
            found = str(admin.describe_topics([topic])[0].get("topic_id") or "")
        finally:
            admin.close()
    except KafkaErrorOfPython as error:
        raise UnknownError(str(error)) from error
    if not found.strip("0-"):
        found = ""  # brokers before Kafka 2.8
    if not cluster and not found:
        return 0
    return int.from_bytes(hashlib.sha256(f"{cluster}/{found}".encode()).digest()[:8], "big") or 1


async def _bounds(consumer: AIOKafkaConsumer, at: TopicPartition) -> tuple[int, int]:
    return (await consumer.beginning_offsets([at]))[at], (await consumer.end_offsets([at]))[at]


async def _newest(
    consumer: AIOKafkaConsumer, at: TopicPartition, start: int, end: int, find: Callable[[Any], FoundT | None]
) -> FoundT | None:
    """Read from `start` to `end`, or to the end that the fetches tell if that is further."""
    consumer.seek(at, start)
    newest = None
    deadline = time.monotonic() + _TIMEOUT_S
    while await consumer.position(at) < max(end, consumer.highwater(at) or 0):
        if time.monotonic() > deadline:
            raise Unavailable(f"{at.topic}[{at.partition}] could not be read from {start} to {end} within {_TIMEOUT_S:.0f} s")
        for record in (await consumer.getmany(at, timeout_ms=_POLL_MS)).get(at, ()):
            found = find(record)
            newest = newest if found is None else found
    return newest
