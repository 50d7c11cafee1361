"""What Apache Kafka refuses of a kafka-python producer, and what becomes of it and of what is sent with it and after it."""

from __future__ import annotations

from typing import Any

import pytest
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import MessageSizeTooLargeError
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.dead_letter_writer import KafkaLetterBox
from services.common.events.dead_letters import dead_letter
from services.common.events.topics import CATALOG, CONTROL, SAMPLES
from services.common.platform.errors import Unavailable
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.common.platform.kafka_batches import CONTENT_TYPE_UNREADABLE
from services.common.platform.kafka_producer import RenewedProducer, send_each
from services.common.platform.kafka_record import Record
from services.mesh.operate.log_scan import LogScanner
from services.mesh.operate.redrive import Redrive
from services.trainer.kafka_samples import KafkaDeadLetters
from tests.limits import seconds
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.deep]


def values(bootstrap: str, topic: str) -> list[bytes]:
    consumer = assigned_consumer(bootstrap, topic, start="beginning", client_id="test")
    try:
        return [record.value for record in drain_to_end(consumer)]
    finally:
        consumer.close()


def letters(bootstrap: str, topic: str) -> list[DeadLetter]:
    return [DeadLetter.FromString(value) for value in values(bootstrap, topic)]


def letter(offset: int, size: int) -> DeadLetter:
    return dead_letter(topic=CATALOG.name, partition=0, offset=offset, reason="malformed", detail="d", value=bytes(size))


def test_a_refusal_belongs_to_its_record(durable_kafka: Any) -> None:
    bootstrap = durable_kafka.bootstrap
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    small = {"max.message.bytes": "20000"}
    configs = {"records": small, "renewed": small, CATALOG.dlq: small, SAMPLES.dlq: small, CONTROL.dlq: {}}
    admin.create_topics(
        [NewTopic(name=name, num_partitions=1, replication_factor=1, topic_configs=config) for name, config in configs.items()]
    )
    admin.close()

    sizes = (100, 30_000, 200, 15_000, 2_000_000, 300)
    said = send_each(bootstrap, [Record("records", b"k", bytes(size)) for size in sizes], client_id="test")
    assert [isinstance(error, MessageSizeTooLargeError) for error in said] == [False, True, False, False, True, False]
    assert said.count(None) == 4
    assert sorted(map(len, values(bootstrap, "records"))) == [100, 200, 300, 15_000]

    renewed = RenewedProducer(bootstrap, client_id="test")
    with pytest.raises(MessageSizeTooLargeError):
        renewed.send("renewed", bytes(30_000), b"k").get(seconds(20))
    renewed.send("renewed", b"after", b"k").get(seconds(20))
    renewed.close()
    assert values(bootstrap, "renewed") == [b"after"]

    box = KafkaLetterBox(bootstrap, CATALOG, source="/test")
    assert box.put([letter(1, 10), letter(2, 50_000), letter(3, 10)]) == [True] * 3
    assert [(each.source_offset, len(each.value)) for each in letters(bootstrap, CATALOG.dlq)] == [(1, 10), (3, 10), (2, 1_000)]
    assert sorted(box.known()) == [(0, 1), (0, 2), (0, 3)]

    renewed = RenewedProducer(bootstrap, client_id="test")
    of_samples = KafkaDeadLetters(SAMPLES.dlq, renewed)
    for offset, size in ((1, 10), (2, 50_000), (3, 10), (4, 60_000)):
        of_samples.send(letter(offset, size))
    eventually(lambda: of_samples.flush() is None, not_yet=(Unavailable,))  # "flush again", says its contract
    renewed.close()
    found = sorted({(each.source_offset, len(each.value)) for each in letters(bootstrap, SAMPLES.dlq)})
    assert found == [(1, 10), (2, 1_000), (3, 10), (4, 1_000)]

    junk = b"\xff" * 1_000_000
    largest = dead_letter(
        topic=CONTROL.name, partition=0, offset=1, reason="malformed", detail="\U0001f600" * 10**6, key=junk[:16_384], value=junk,
        headers=[("traceparent", junk[:32_700])],
    )  # fmt: skip
    assert KafkaLetterBox(bootstrap, CONTROL, source="/test").put([largest]) == [True]
    assert letters(bootstrap, CONTROL.dlq) == [largest], "whole, at a broker's default limits"


def test_a_redrive_reports_what_the_broker_refuses_and_puts_the_others_back(durable_kafka: Any) -> None:
    bootstrap = durable_kafka.bootstrap
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    configs = {CATALOG.name: {"max.message.bytes": "20000"}, CATALOG.dlq: {}}
    admin.create_topics(
        [NewTopic(name=name, num_partitions=1, replication_factor=1, topic_configs=config) for name, config in configs.items()]
    )
    admin.close()
    stand_in = letter(5, 10)
    stand_in.headers["content-type"] = CONTENT_TYPE_UNREADABLE.encode()
    written = [letter(1, 10), letter(2, 50_000), letter(3, 20), letter(4, 60_000), stand_in]
    assert all(KafkaLetterBox(bootstrap, CATALOG, source="/test").put(written))
    scanner = LogScanner(bootstrap, timeout_ms=int(seconds(10) * 1e3), max_records=1_000)
    for expected in ([1, 3], []):
        done = Redrive(bootstrap, scanner, CATALOG).run(limit=1_000)
        assert [each.name.source_offset for each in done.sent] == expected
        if expected:
            assert [each.name.source_offset for each, _ in done.refused] == [2, 4]
            assert "MessageSizeTooLarge" in done.refused[0][1]
        assert len(done.why_not) == 1 and "could not be decoded" in next(iter(done.why_not))
    assert sorted(map(len, values(bootstrap, CATALOG.name))) == [10, 20]
