"""What Apache Kafka says to a record that its topic does not allow, and what becomes of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from kafka.admin import KafkaAdminClient, NewTopic
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.platform import telemetry
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.common.platform.kafka_async import AsyncProducer, Record
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


async def test_a_record_above_the_topics_limit_becomes_a_dead_letter_and_the_others_arrive(durable_kafka: Any, tmp_path: Path) -> None:
    admin = KafkaAdminClient(bootstrap_servers=durable_kafka.bootstrap)
    admin.create_topics(
        [
            NewTopic(name="exposures.v1", num_partitions=1, replication_factor=1, topic_configs={"max.message.bytes": "20000"}),
            NewTopic(name="exposures.v1.dlq.v1", num_partitions=1, replication_factor=1),
        ]
    )
    admin.close()
    producer = AsyncProducer(durable_kafka.bootstrap, client_id="test", delivery_timeout_ms=int(seconds(10) * 1e3))
    assert await producer.start(wait_s=seconds(20))
    spool = Spool(tmp_path / "spool", max_bytes=1 << 20, variable="X")
    log = KafkaEventLog(producer, spool, max_buffered=100, flush_interval_ms=50, telemetry=telemetry.disabled("router"))
    for number in range(10):
        # Random bytes: what is compressed might fit.
        value = bytes((number * 31 + place * place) % 251 for place in range(50_000 if number == 4 else 100))
        log.append(Record("exposures.v1", b"user", b"%d " % number + value, []))
    log.start()
    async with asyncio.timeout(seconds(60)):
        while log.counts["sent"] + log.counts["set_aside"] < 10:
            await asyncio.sleep(0.05)
    await log.close()
    await producer.stop()
    assert sorted(value.split()[0] for value in values(durable_kafka.bootstrap, "exposures.v1")) == [b"%d" % n for n in range(10) if n != 4]
    [letter] = map(DeadLetter.FromString, values(durable_kafka.bootstrap, "exposures.v1.dlq.v1"))
    assert letter.reason == "undeliverable" and letter.value.startswith(b"4 ") and "MessageSizeTooLarge" in letter.detail
