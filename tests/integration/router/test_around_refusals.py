"""What the asyncio producer and the router's log do around what is refused: order, and what is larger than any record of ours."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.undeliverable import EXCERPT_BYTES
from services.common.platform import telemetry
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.common.platform.kafka_async import AsyncProducer
from services.common.platform.kafka_record import NotAcknowledged, Record
from services.router.event_log import KafkaEventLog
from services.router.spool import Spool
from tests.integration.router.test_refused_records import create_topics, incompressible, values
from tests.limits import seconds

pytestmark = pytest.mark.integration


async def test_a_record_larger_than_any_of_ours_is_a_dead_letter_on_the_embedded_broker_too(fresh_broker: Any, tmp_path: Path) -> None:
    bootstrap = fresh_broker.bootstrap
    create_topics(bootstrap, 1_000_000)
    producer = AsyncProducer(bootstrap, client_id="test", delivery_timeout_ms=int(seconds(10) * 1e3))
    assert await producer.start(wait_s=seconds(20))
    spool = Spool(tmp_path / "spool", max_bytes=1 << 20, variable="X")
    log = KafkaEventLog(producer, spool, max_buffered=100, flush_interval_ms=50, telemetry=telemetry.disabled("router"))
    for number, size in enumerate((100, 1_500_000, 200)):
        log.append(Record("exposures.v1", b"user", incompressible(number, size), []))
    log.start()
    async with asyncio.timeout(seconds(60)):
        while log.counts["sent"] + log.counts["set_aside"] < 3:
            await asyncio.sleep(0.05)
    await log.close()
    await producer.stop()
    assert values(bootstrap, "exposures.v1") == [incompressible(0, 100), incompressible(2, 200)]
    (letter,) = [DeadLetter.FromString(value) for value in values(bootstrap, "exposures.v1.dlq.v1")]
    assert (letter.reason, letter.value) == ("undeliverable", incompressible(1, 1_500_000)[:EXCERPT_BYTES])


async def test_what_names_its_partition_keeps_its_order_there_around_what_is_refused(durable_kafka: Any) -> None:
    """Two writers, each waiting for its send before the next one: as the partitions of the joiner."""
    bootstrap = durable_kafka.bootstrap
    create_topics(bootstrap, 60_000, partitions=2)
    producer = AsyncProducer(bootstrap, client_id="test", delivery_timeout_ms=int(seconds(30) * 1e3))
    assert await producer.start(wait_s=seconds(20))
    rng = random.Random(1)

    async def write(partition: int) -> list[int]:
        taken = []
        for first in range(0, 600, 100):
            sizes = {first + n: rng.choice([100] * 30 + [40_000, 90_000, 600_000, 1_500_000]) for n in range(100)}
            values = [incompressible(number, size) for number, size in sizes.items()]
            todo = [Record("exposures.v1", b"u%d" % rng.randrange(9), value, [], partition) for value in values]
            try:
                await producer.send(todo)
            except NotAcknowledged as error:
                assert error.records == []
                assert min(len(each.record.value) for each in error.refused) > 60_000
            taken += [number for number, size in sizes.items() if size < 60_000]
        return taken

    wanted = await asyncio.gather(write(0), write(1))
    await producer.stop()
    consumer = assigned_consumer(bootstrap, "exposures.v1", start="beginning", client_id="test")
    written: dict[int, list[int]] = {0: [], 1: []}
    for record in drain_to_end(consumer):
        written[record.partition].append(int(record.value.split()[0]))
    consumer.close()
    assert [written[0], written[1]] == wanted
    assert all(len(numbers) < 600 for numbers in wanted)
