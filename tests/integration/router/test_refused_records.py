"""What Apache Kafka says to a record that its topic does not allow, and what becomes of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from kafka.admin import KafkaAdminClient, NewTopic
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.undeliverable import EXCERPT_BYTES
from services.common.platform import telemetry
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.common.platform.kafka_async import AsyncProducer
from services.common.platform.kafka_record import Record
from services.router.event_log import KafkaEventLog
from services.router.spool import Spool
from tests.limits import seconds

pytestmark = [pytest.mark.integration, pytest.mark.deep]


def values(bootstrap: str, topic: str) -> list[bytes]:
    consumer = assigned_consumer(bootstrap, topic, start="beginning", client_id="test")
    try:
        return [record.value for record in drain_to_end(consumer)]
    finally:
        consumer.close()


def create_topics(bootstrap: str, max_message_bytes: int, *, partitions: int = 1) -> None:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    limits = {"exposures.v1": {"max.message.bytes": str(max_message_bytes)}, "exposures.v1.dlq.v1": {}}
    admin.create_topics(
        [NewTopic(name=name, num_partitions=partitions, replication_factor=1, topic_configs=config) for name, config in limits.items()]
    )
    admin.close()


class Bench:
    """An event log whose backlog waits in the spool."""

    def __init__(self, producer: AsyncProducer, folder: Path, backlog: list[Record]) -> None:
        spool = Spool(folder, max_bytes=1 << 28, variable="X")
        assert spool.append(backlog) == len(backlog)
        self.spool = spool
        self.log = KafkaEventLog(producer, spool, max_buffered=100, flush_interval_ms=50, telemetry=telemetry.disabled("router"))

    async def drain(self, count: int) -> float:
        """Return how many seconds it took until `count` records were sent or set aside."""
        started = time.monotonic()
        self.log.start()
        async with asyncio.timeout(seconds(120)):
            while self.log.counts["sent"] + self.log.counts["set_aside"] < count:
                await asyncio.sleep(0.005)
        took_s = time.monotonic() - started
        await self.log.close()
        return took_s


def incompressible(number: int, size: int) -> bytes:
    return b"%d " % number + random.Random(number).randbytes(size)


async def test_a_record_above_the_topics_limit_becomes_a_dead_letter_and_the_others_arrive(durable_kafka: Any, tmp_path: Path) -> None:
    create_topics(durable_kafka.bootstrap, 20_000)
    producer = AsyncProducer(durable_kafka.bootstrap, client_id="test", delivery_timeout_ms=int(seconds(10) * 1e3))
    assert await producer.start(wait_s=seconds(20))
    spool = Spool(tmp_path / "spool", max_bytes=1 << 20, variable="X")
    log = KafkaEventLog(producer, spool, max_buffered=100, flush_interval_ms=50, telemetry=telemetry.disabled("router"))
    for number in range(10):
        # The last one is larger than any record of ours.
        size = {4: 50_000, 9: 1_500_000}.get(number, 100)
        log.append(Record("exposures.v1", b"user", incompressible(number, size), []))
    log.start()
    async with asyncio.timeout(seconds(60)):
        while log.counts["sent"] + log.counts["set_aside"] < 10:
            await asyncio.sleep(0.05)
    await log.close()
    await producer.stop()
    assert sorted(value.split()[0] for value in values(durable_kafka.bootstrap, "exposures.v1")) == [b"%d" % n for n in range(9) if n != 4]
    letters = [DeadLetter.FromString(value) for value in values(durable_kafka.bootstrap, "exposures.v1.dlq.v1")]
    whole, excerpt = sorted(letters, key=lambda letter: -len(letter.value))
    assert {letter.reason for letter in letters} == {"undeliverable"}
    assert whole.value == incompressible(4, 50_000) and "MessageSizeTooLarge" in whole.detail
    assert excerpt.value == incompressible(9, 1_500_000)[:EXCERPT_BYTES] and "at most 900000 bytes" in excerpt.detail


async def test_a_backlog_larger_than_the_topics_limit_on_a_batch_is_sent_once(durable_kafka: Any, tmp_path: Path) -> None:
    create_topics(durable_kafka.bootstrap, 200_000)
    producer = AsyncProducer(durable_kafka.bootstrap, client_id="test", delivery_timeout_ms=int(seconds(10) * 1e3))
    assert await producer.start(wait_s=seconds(20))
    backlog = [Record("exposures.v1", b"user-%d" % (number % 50), incompressible(number, 1_000), []) for number in range(2_000)]
    bench = Bench(producer, tmp_path / "spool", backlog)
    await bench.drain(len(backlog))
    await producer.stop()
    assert bench.log.counts == {"sent": 2_000}
    assert Counter(values(durable_kafka.bootstrap, "exposures.v1")) == Counter(each.value for each in backlog)


async def test_one_refused_record_in_a_hundred_does_not_halve_the_drain(durable_kafka: Any, tmp_path: Path) -> None:
    create_topics(durable_kafka.bootstrap, 20_000, partitions=2)
    producer = AsyncProducer(durable_kafka.bootstrap, client_id="test", delivery_timeout_ms=int(seconds(10) * 1e3))
    assert await producer.start(wait_s=seconds(20))
    sent: list[bytes] = []
    took_s: dict[bool, list[float]] = {True: [], False: []}
    # What the machine does meanwhile meets one kind as well as the other: they take turns, and the best round of each counts.
    for turn in range(8):
        has_bad, first = bool(turn % 2), turn * 4_000
        backlog = [
            Record("exposures.v1", b"user-%d" % (n % 500), incompressible(n, 25_000 if has_bad and n % 100 == 99 else 1_000), [])
            for n in range(first, first + 4_000)
        ]
        bench = Bench(producer, tmp_path / f"spool-{turn}", backlog)
        took_s[has_bad].append(await bench.drain(len(backlog)))
        assert bench.log.counts == ({"sent": 3_960, "set_aside": 40} if has_bad else {"sent": 4_000})
        sent += [each.value for each in backlog if len(each.value) < 20_000]
    await producer.stop()
    assert Counter(values(durable_kafka.bootstrap, "exposures.v1")) == Counter(sent)
    assert len(values(durable_kafka.bootstrap, "exposures.v1.dlq.v1")) == 4 * 40
    print("seconds for 4,000 records, with and without refused ones:", took_s)
    assert min(took_s[True]) < 2 * min(took_s[False])
