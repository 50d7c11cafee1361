"""Kafka as the joiner needs it beside Faust's consumer: a producer whose sends keep their order, and questions about logs and offsets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError, UnknownError
from aiokafka.structs import TopicPartition

from services.common.errors import ConfigurationError, Unavailable
from services.common.topics import EXPOSURES, FEEDBACK, SAMPLES, WITH_DLQ
from streams.joiner.codec import read_tick
from streams.joiner.model import Resume

# Longer than a broker's restart: until then aiokafka repeats a batch by itself; after it the joiner dies and starts from the log.
_DELIVERY_TIMEOUT_MS = 60_000
_TAIL_RECORDS = 500
_TAIL_POLL_MS = 200

_log = logging.getLogger(__name__)


class OrderedProducer:
    """Sends without waiting for the acknowledgement; what is sent to one partition is written in the order of the calls."""

    def __init__(self, bootstrap_servers: str, client_id: str) -> None:
        """Nothing is connected before `start`."""
        self._bootstrap = bootstrap_servers
        self._client_id = client_id
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect.

        Raises:
            Unavailable: no broker.
        """
        try:
            try:
                self._producer = await self._open(idempotent=True)
            except UnknownError:
                # The embedded broker (Tansu 0.6) has no producer ids for aiokafka. A repeated batch only repeats samples and dead letters.
                self._producer = await self._open(idempotent=False)
        except (KafkaError, OSError) as error:
            raise Unavailable(f"no Kafka broker at {self._bootstrap}: {error!r}") from error

    async def _open(self, *, idempotent: bool) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            client_id=self._client_id,
            acks="all",
            enable_idempotence=idempotent,
            linger_ms=2,
            request_timeout_ms=_DELIVERY_TIMEOUT_MS,
            max_batch_size=256 * 1024,
            max_request_size=2 * 1024 * 1024,
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer

    async def send(
        self, topic: str, *, partition: int | None, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> asyncio.Future[object]:
        """Queue one record and return the future of its acknowledgement. Waits only while the queue is full."""
        assert self._producer is not None, "send before start"
        future: asyncio.Future[object] = await self._producer.send(topic, value, key, partition, headers=list(headers))
        return future

    async def stop(self) -> None:
        """Send what is queued and close."""
        if self._producer is not None:
            await self._producer.stop()


class LogReader:
    """Answers where logs begin and end, what the joiner's group has committed, and what the last tick said."""

    def __init__(self, bootstrap_servers: str, group: str) -> None:
        """Nothing is connected before `start`."""
        self._bootstrap = bootstrap_servers
        self._group = group
        # Assigned nothing and a member of no group: it only asks.
        self._asking: AIOKafkaConsumer | None = None
        self._lock = asyncio.Lock()

    def _new_consumer(self, group: str | None) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            client_id=f"{self._group}-reader",
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            request_timeout_ms=10_000,
        )

    async def start(self) -> None:
        """Connect; does nothing when it is connected.

        Raises:
            Unavailable: no broker.
        """
        if self._asking is not None:
            return
        consumer = self._new_consumer(self._group)
        try:
            await consumer.start()
        except (KafkaError, OSError) as error:
            await consumer.stop()
            raise Unavailable(f"no Kafka broker at {self._bootstrap}: {error!r}") from error
        self._asking = consumer

    async def stop(self) -> None:
        """Close."""
        if self._asking is not None:
            await self._asking.stop()

    @property
    def _consumer(self) -> AIOKafkaConsumer:
        assert self._asking is not None, "asked before start"
        return self._asking

    async def check_partitions(self, num_partitions: int) -> None:
        """Compare the topics that must be partitioned alike with the configuration.

        Raises:
            Unavailable: a topic does not exist.
            ConfigurationError: a topic has another number of partitions.
        """
        existing = await self._consumer.topics()
        for topic in (EXPOSURES, FEEDBACK, SAMPLES):
            found = self._consumer.partitions_for_topic(topic.name) if topic.name in existing else None
            if not found:
                raise Unavailable(f"topic {topic.name} does not exist at {self._bootstrap}: create the topics first (`tunemesh topics`)")
            if len(found) != num_partitions:
                raise ConfigurationError(
                    f"topic {topic.name} has {len(found)} partitions, TUNEMESH_USER_PARTITIONS is {num_partitions}: make them equal"
                )
        for topic in WITH_DLQ[:2]:
            if topic.dlq not in existing:
                raise Unavailable(f"topic {topic.dlq} does not exist at {self._bootstrap}: create the topics first (`tunemesh topics`)")

    async def ends(self, partitions: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Return the ends of the partitions as the broker tells them now, or nothing when it does not answer.

        The embedded broker (Tansu 0.6) tells the first offset of the last batch plus one: too little once that batch has been read in part.
        """
        try:
            found = await self._consumer.end_offsets([TopicPartition(topic, partition) for topic, partition in partitions])
        except KafkaError as error:
            _log.warning("the ends of the logs could not be had: %r", error)
            return {}
        return {(at.topic, at.partition): offset for at, offset in found.items()}

    async def resume(self, partition: int) -> Resume:
        """Return where the partition is taken up."""
        async with self._lock:
            starts = [await self._start(TopicPartition(topic.name, partition)) for topic in (EXPOSURES, FEEDBACK)]
            position, watermark_ms = await self._last_tick(partition)
        return Resume(starts[0], starts[1], position, watermark_ms)

    async def _start(self, at: TopicPartition) -> int:
        committed: int | None = await self._consumer.committed(at)
        beginning: int = (await self._consumer.beginning_offsets([at]))[at]
        return beginning if committed is None else max(beginning, committed)

    async def _last_tick(self, partition: int) -> tuple[int, int]:
        """Return (feedback position, watermark) of the newest tick in the samples log; zeros when it has none."""
        at = TopicPartition(SAMPLES.name, partition)
        consumer = self._new_consumer(None)
        await consumer.start()
        try:
            consumer.assign([at])
            beginning = (await consumer.beginning_offsets([at]))[at]
            stop = (await consumer.end_offsets([at]))[at]
            start = stop
            while start > beginning:
                start = max(beginning, start - _TAIL_RECORDS)
                newest = await _newest_tick(consumer, at, start, stop)
                if newest is not None:
                    return newest
            return 0, 0
        finally:
            await consumer.stop()


async def _newest_tick(consumer: AIOKafkaConsumer, at: TopicPartition, start: int, stop: int) -> tuple[int, int] | None:
    """Return (feedback position, watermark) of the newest tick from `start` on, read to `stop` or to the end if that is further."""
    consumer.seek(at, start)
    newest = None
    while await consumer.position(at) < max(stop, consumer.highwater(at) or 0):
        for record in (await consumer.getmany(at, timeout_ms=_TAIL_POLL_MS)).get(at, ()):
            tick = read_tick(record.value)
            if tick is not None:
                newest = (tick.feedback_position, tick.watermark_ms)
    return newest
