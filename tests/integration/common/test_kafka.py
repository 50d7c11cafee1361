"""The Kafka helpers against a real broker."""

from __future__ import annotations

import asyncio
import gc
import logging
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import KafkaError, OffsetOutOfRangeError

from services.common.platform.errors import Overloaded, Unavailable
from services.common.platform.kafka import assigned_consumer, drain_to_end, end_offsets, read_compacted
from services.common.platform.kafka_async import AsyncProducer
from services.common.platform.kafka_producer import RenewedProducer, durable_producer
from services.common.platform.kafka_record import NotAcknowledged, Record
from services.mesh.runner.topics import create_topics
from tests.limits import seconds

pytestmark = pytest.mark.integration

NOWHERE = "127.0.0.1:1"


def produce(bootstrap: str, topic: str, *records: tuple[bytes | None, bytes | None], partition: int | None = None) -> None:
    producer = durable_producer(bootstrap, client_id="test")
    for key, value in records:
        producer.send(topic, key=key, value=value, partition=partition).get(seconds(10))
    producer.close()


def test_a_consumer_starts_at_the_beginning_or_at_given_offsets(kafka_bootstrap: str, topics: Callable[..., str]) -> None:
    topic = topics("positions", partitions=2)
    produce(kafka_bootstrap, topic, *[(b"k", b"%d" % number) for number in range(5)], partition=0)
    produce(kafka_bootstrap, topic, (b"k", b"other"), partition=1)

    def values(start: Any, partitions: Any = None) -> list[bytes]:
        consumer = assigned_consumer(kafka_bootstrap, topic, partitions, start=start, client_id="test")
        records = drain_to_end(consumer)
        consumer.close()
        return sorted(record.value for record in records)

    assert values("beginning") == [b"0", b"1", b"2", b"3", b"4", b"other"]
    assert values("beginning", [1]) == [b"other"]
    assert values({0: 3}) == [b"3", b"4", b"other"]


async def test_the_end_is_behind_the_last_record_of_the_last_batch(kafka_bootstrap: str, topics: Callable[..., str]) -> None:
    topic = topics("ends", partitions=2)
    producer = AsyncProducer(kafka_bootstrap, client_id="test")
    await producer.start(wait_s=10)
    consumer = await asyncio.to_thread(assigned_consumer, kafka_bootstrap, topic, start="beginning", client_id="test")
    sent = 0
    for size in (10, 1, 5):
        await producer.send([Record(topic, b"k", b"v")] * size)
        sent += size
        fresh = await asyncio.to_thread(assigned_consumer, kafka_bootstrap, topic, start="beginning", client_id="test")
        assert sorted((await asyncio.to_thread(end_offsets, fresh)).values()) == [0, sent]
        assert len(await asyncio.to_thread(drain_to_end, fresh)) == sent
        fresh.close()
        assert len(await asyncio.to_thread(drain_to_end, consumer)) == size
        assert sorted((await asyncio.to_thread(end_offsets, consumer)).values()) == [0, sent]
    await producer.stop()
    consumer.close()


def test_a_position_that_the_broker_does_not_have_any_more_is_an_event_and_not_a_silent_jump(durable_kafka: Any) -> None:
    create_topics(durable_kafka.bootstrap, {"t": 1})
    produce(durable_kafka.bootstrap, "t", (b"k", b"v"))
    consumer = assigned_consumer(durable_kafka.bootstrap, "t", start={0: 1_000}, client_id="test")
    with pytest.raises(OffsetOutOfRangeError):
        for _ in range(50):
            consumer.poll(timeout_ms=200)
    consumer.close()


def test_a_compacted_topic_is_read_to_its_end_with_the_newest_value_per_key(kafka_bootstrap: str, topics: Callable[..., str]) -> None:
    topic = topics("compacted")
    assert read_compacted(kafka_bootstrap, topic, client_id="test") == {}
    produce(kafka_bootstrap, topic, (b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"b", None), (b"c", b"3"))
    newest = read_compacted(kafka_bootstrap, topic, client_id="test")
    assert {key: record.value for key, record in newest.items()} == {b"a": b"2", b"c": b"3"}


def test_more_than_a_megabyte_behind_is_read_whole(kafka_bootstrap: str, topics: Callable[..., str]) -> None:
    topic = topics("big")
    produce(kafka_bootstrap, topic, *[(b"%d" % number, bytes(200_000)) for number in range(30)])
    consumer = assigned_consumer(kafka_bootstrap, topic, start="beginning", client_id="test")
    assert len(drain_to_end(consumer)) == 30
    consumer.close()


def test_an_absent_partition_and_an_absent_broker_are_unavailable(kafka_bootstrap: str, topics: Callable[..., str]) -> None:
    with pytest.raises(Unavailable, match="has no partition 7"):
        assigned_consumer(kafka_bootstrap, topics("few"), [7], start="beginning", client_id="test")
    with pytest.raises(Unavailable, match=f"no Kafka broker at {NOWHERE}"):
        assigned_consumer(NOWHERE, "t", start="beginning", client_id="test", bootstrap_timeout_ms=500)
    with pytest.raises(Unavailable, match=f"no Kafka broker at {NOWHERE}"):
        durable_producer(NOWHERE, client_id="test", delivery_timeout_ms=500)


def test_connecting_in_vain_leaves_no_thread_and_no_descriptor_behind(caplog: pytest.LogCaptureFixture) -> None:
    # A captured log line keeps the connection that it is about, and its sockets.
    caplog.set_level(logging.CRITICAL, logger="kafka")

    def held() -> tuple[int, int]:
        gc.collect()
        return threading.active_count(), sum(1 for _ in Path("/proc/self/fd").iterdir())

    def try_both() -> None:
        with pytest.raises(Unavailable):
            assigned_consumer(NOWHERE, "t", start="beginning", client_id="test", bootstrap_timeout_ms=100)
        with pytest.raises(Unavailable):
            durable_producer(NOWHERE, client_id="test", bootstrap_timeout_ms=100)

    try_both()
    threads, descriptors = held()
    for _ in range(8):
        try_both()
    now_threads, now_descriptors = held()
    assert now_threads <= threads
    # A socket or two may be on their way out; a leak would be 4 to 10 in each of the 8 rounds.
    assert now_descriptors < descriptors + 8


def send_until_acknowledged(producer: RenewedProducer, topic: str, timeout_s: float) -> int:
    deadline = time.monotonic() + seconds(timeout_s)
    while True:
        try:
            return int(producer.send(topic, b"v").get(seconds(5)).offset)
        except (Unavailable, KafkaError):
            assert time.monotonic() < deadline, f"nothing acknowledged within {timeout_s} s"
            time.sleep(0.1)


@pytest.mark.parametrize("hangs_first", [False, True])
def test_a_renewed_producer_writes_again_when_the_broker_is_back(fresh_broker: Any, hangs_first: bool) -> None:
    create_topics(fresh_broker.bootstrap, {"t": 1})
    delivery_ms = 2_000
    producer = RenewedProducer(fresh_broker.bootstrap, client_id="test", delivery_timeout_ms=delivery_ms)
    num_threads = threading.active_count()
    assert producer.send("t", b"v").get(seconds(10)).offset == 0
    if hangs_first:
        fresh_broker.suspend()
    under_way = producer.send("t", b"v")
    time.sleep(0.3)
    fresh_broker.kill()
    # It may have been acknowledged before the kill.
    deadline = time.monotonic() + seconds(30)
    while not under_way.is_done:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    took_s = []
    for _ in range(20):
        started = time.monotonic()
        with pytest.raises((Unavailable, KafkaError)):
            producer.send("t", b"v").get(seconds(30))
        took_s.append(time.monotonic() - started)
    assert statistics.median(took_s) < delivery_ms / 1e3 / 3, "while the broker is known to be down, a send fails at once"
    fresh_broker.start()
    create_topics(fresh_broker.bootstrap, {"t": 1})
    assert send_until_acknowledged(producer, "t", 60) >= 0
    deadline = time.monotonic() + seconds(30)
    while threading.active_count() > num_threads:  # a producer that was given up ends its thread by itself
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.05)
    producer.close()
    with pytest.raises(Unavailable, match="closed"):
        producer.send("t", b"v")


async def test_both_producers_put_a_user_on_the_same_partition(kafka_bootstrap: str, topics: Callable[..., str]) -> None:
    topic = topics("partitioner", partitions=4)
    keys = [f"user-{number}".encode() for number in range(40)]
    producer = AsyncProducer(kafka_bootstrap, client_id="test")
    assert await producer.start(wait_s=10)
    await producer.send([Record(topic, key, b"async", [("h", b"v")]) for key in keys])
    await producer.stop()
    await asyncio.to_thread(produce, kafka_bootstrap, topic, *[(key, b"sync") for key in keys])
    consumer = await asyncio.to_thread(assigned_consumer, kafka_bootstrap, topic, start="beginning", client_id="test")
    records = await asyncio.to_thread(drain_to_end, consumer)
    consumer.close()
    places: dict[bytes, set[int]] = {}
    for record in records:
        places.setdefault(record.key, set()).add(record.partition)
    assert len(records) == 80 and set(places) == set(keys)
    assert all(len(partitions) == 1 for partitions in places.values())
    assert len({next(iter(partitions)) for partitions in places.values()}) == 4
    assert next(record.headers for record in records if record.value == b"async") == [("h", b"v")]


async def test_what_is_too_large_is_refused_alone_and_too_many_together(kafka_bootstrap: str, topics: Callable[..., str]) -> None:
    topic = topics("bounds")
    producer = AsyncProducer(kafka_bootstrap, client_id="test", max_in_flight=3)
    await producer.start(wait_s=10)
    large = Record(topic, b"k", bytes(1_000_001))
    with pytest.raises(NotAcknowledged, match="more than the 1000000") as caught:
        await producer.send([Record(topic, b"k", b"small"), large])
    assert ([each.record for each in caught.value.refused], caught.value.records) == ([large], [])
    with pytest.raises(Overloaded):
        await producer.send([Record(topic, b"k", b"v")] * 4)
    await producer.send([Record(topic, b"k", b"v")] * 3)
    await producer.stop()
    consumer = await asyncio.to_thread(assigned_consumer, kafka_bootstrap, topic, start="beginning", client_id="test")
    assert len(await asyncio.to_thread(drain_to_end, consumer)) == 4
    consumer.close()


async def test_a_broker_that_goes_down_is_told_in_time_then_at_once_and_found_again(fresh_broker: Any) -> None:
    bootstrap = fresh_broker.bootstrap
    create_topics(bootstrap, {"t": 1})
    producer = AsyncProducer(bootstrap, client_id="test", delivery_timeout_ms=3_000)
    await producer.start(wait_s=10)
    await producer.send([Record("t", b"k", b"before")])
    fresh_broker.kill()
    took_s = []
    for _ in range(4):
        started = time.monotonic()
        with pytest.raises(NotAcknowledged, match="is down" if took_s else None) as caught:
            await producer.send([Record("t", b"k", b"lost"), Record("t", b"k", b"too")])
        assert [record.value for record in caught.value.records] == [b"lost", b"too"]
        took_s.append(time.monotonic() - started)
    assert min(took_s[1:]) < took_s[0] / 3, "once it is known to be down, a send fails at once"
    await asyncio.to_thread(fresh_broker.start)  # the embedded one comes back empty, and makes topics as they are asked for
    async with asyncio.timeout(seconds(60)):
        while not producer.connected:
            await asyncio.sleep(0.05)
        while True:  # the topic is being made
            try:
                await producer.send([Record("t", b"k", b"after")])
                break
            except NotAcknowledged:
                await asyncio.sleep(0.1)
    await producer.stop()
    consumer = await asyncio.to_thread(assigned_consumer, bootstrap, "t", start="beginning", client_id="test")
    values = [record.value for record in await asyncio.to_thread(drain_to_end, consumer)]
    consumer.close()
    assert values[-1] == b"after"


async def test_a_callers_shorter_timeout_does_not_count_the_broker_as_down(fresh_broker: Any) -> None:
    create_topics(fresh_broker.bootstrap, {"t": 1})
    producer = AsyncProducer(fresh_broker.bootstrap, client_id="test", delivery_timeout_ms=5_000)
    await producer.start(wait_s=10)
    fresh_broker.kill()
    with pytest.raises(NotAcknowledged):
        await producer.send([Record("t", b"k", b"v")], timeout_s=0.1)
    assert producer.connected
    await asyncio.wait_for(producer.stop(), seconds(30))


async def test_stopping_while_the_broker_is_down_takes_no_longer_than_its_timeouts(fresh_broker: Any) -> None:
    create_topics(fresh_broker.bootstrap, {"t": 1})
    producer = AsyncProducer(fresh_broker.bootstrap, client_id="test", delivery_timeout_ms=500)
    await producer.start(wait_s=10)
    fresh_broker.kill()
    sending = asyncio.ensure_future(producer.send([Record("t", b"k", b"v")]))
    await asyncio.sleep(0.05)
    started = time.monotonic()
    await producer.stop()
    assert time.monotonic() - started < seconds(20)
    with pytest.raises(NotAcknowledged):
        await sending
