"""Both event producers on a real broker: what they write is read back, and a broker that dies is found again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from tunemesh.events.v1 import feedback_pb2

from services.common.events.envelope import header, parse_value
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.common.platform.partitioning import partition_of
from services.mesh.runner.topics import create_topics
from tests.limits import seconds
from tunemesh_client import (
    AsyncEventProducer,
    Cancelled,
    EventProducer,
    Feedback,
    InvalidRequest,
    RetryPolicy,
    TunemeshError,
    Written,
)

pytestmark = pytest.mark.integration

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNTIL_THE_DEADLINE = RetryPolicy(retries=None, first_pause_s=0.05, max_pause_s=0.2, attempt_timeout_s=2.0)


class Awaited:
    """The blocking producer with the asyncio producer's surface."""

    def __init__(self, producer: EventProducer) -> None:
        self._producer = producer

    async def send(self, feedback: Feedback, **options: Any) -> Written:
        return await asyncio.to_thread(self._producer.send, feedback, **options)

    async def send_many(self, feedback: list[Feedback], **options: Any) -> list[Written]:
        return await asyncio.to_thread(self._producer.send_many, feedback, **options)

    async def close(self) -> None:
        await asyncio.to_thread(self._producer.close)


WAYS = {"blocking": lambda *arguments, **options: Awaited(EventProducer(*arguments, **options)), "asyncio": AsyncEventProducer}
Make = Callable[..., Any]


@pytest.fixture(params=sorted(WAYS))
def make(request) -> Make:
    return WAYS[request.param]


def act(user_id: str = "u", **fields: Any) -> Feedback:
    return Feedback(**{"request_id": "r", "user_id": user_id, "kind": "rating", "item_id": "i", "value": 4.0, **fields})


async def read(bootstrap: str, topic: str) -> list[Any]:
    def drain() -> list[Any]:
        consumer = assigned_consumer(bootstrap, topic, start="beginning", client_id="test")
        records = drain_to_end(consumer)
        consumer.close()
        return records

    return await asyncio.to_thread(drain)


async def test_what_is_sent_is_read_back_with_its_key_partition_headers_and_value(kafka_bootstrap, topics, make):
    topic = topics("feedback", partitions=4)
    producer = make(kafka_bootstrap, topic=topic, source="/shop", traceparent=lambda: TRACEPARENT)
    acts = {f"user-{number}": act(f"user-{number}") for number in range(20)}
    before_ms = time.time_ns() // 1_000_000
    placed = {user_id: await producer.send(given, deadline_s=seconds(30)) for user_id, given in acts.items()}
    await producer.close()
    records = {(record.partition, record.offset): record for record in await read(kafka_bootstrap, topic)}
    assert len(records) == 20 and len({partition for partition, _ in records}) == 4
    for user_id, written in placed.items():
        record, given = records[written.partition, written.offset], acts[user_id]
        assert (record.key, record.partition) == (user_id.encode(), partition_of(user_id.encode(), 4))
        message = parse_value(record.value, record.headers, feedback_pb2.Feedback)
        assert message == given.to_proto(accepted_at_ms=written.accepted_at_ms)
        assert before_ms <= written.accepted_at_ms <= time.time_ns() // 1_000_000
        assert header(record.headers, "ce_id") == given.feedback_id == written.feedback_id
        assert (header(record.headers, "ce_source"), header(record.headers, "traceparent")) == ("/shop", TRACEPARENT)


async def test_several_are_sent_together_and_keep_the_order_of_a_user(kafka_bootstrap, topics, make):
    topic = topics("feedback", partitions=2)
    producer = make(kafka_bootstrap, topic=topic)
    acts = [act(f"user-{number % 3}", value=float(number)) for number in range(300)]
    written = await producer.send_many(acts, deadline_s=seconds(30))
    await producer.close()
    assert [each.feedback_id for each in written] == [given.feedback_id for given in acts]
    values: dict[bytes, list[float]] = {}
    for record in sorted(await read(kafka_bootstrap, topic), key=lambda record: (record.partition, record.offset)):
        values.setdefault(record.key, []).append(feedback_pb2.Feedback.FromString(record.value).value)
    assert values == {b"user-%d" % number: [float(value) for value in range(number, 300, 3)] for number in range(3)}


async def test_what_the_mesh_would_set_aside_is_refused_before_anything_is_written(kafka_bootstrap, topics, make):
    topic = topics("feedback")
    producer = make(kafka_bootstrap, topic=topic)
    with pytest.raises(InvalidRequest, match="item_id: it has 0 bytes"):
        await producer.send_many([act(), act(item_id="")])
    await producer.send(act(), deadline_s=seconds(30))
    await producer.close()
    assert len(await read(kafka_bootstrap, topic)) == 1


async def test_a_closed_producer_says_so(kafka_bootstrap, topics, make):
    producer = make(kafka_bootstrap, topic=topics("feedback"))
    await producer.send(act(), deadline_s=seconds(30))
    await producer.close()
    await producer.close()
    with pytest.raises(Cancelled, match="the producer is closed"):
        await producer.send(act())


def kafka_threads() -> int:
    return sum("kafka" in thread.name.lower() for thread in threading.enumerate())


async def test_no_broker_is_told_within_the_deadline_and_leaves_no_thread(make):
    before = kafka_threads()
    told: list[TunemeshError] = []
    retry = RetryPolicy(retries=None, first_pause_s=0.05, max_pause_s=0.05)
    producer = make("127.0.0.1:1", retry=retry, on_retry=lambda error, _: told.append(error))
    with pytest.raises(TunemeshError) as caught:
        await producer.send(act(), deadline_s=1.0)
    assert caught.value.retry_helps and caught.value.request == "feedback.v1 at 127.0.0.1:1"
    await producer.close()
    async with asyncio.timeout(seconds(30)):
        while kafka_threads() > before:
            await asyncio.sleep(0.05)


async def test_a_send_outlives_a_broker_that_hangs(fresh_broker, make):
    create_topics(fresh_broker.bootstrap, {"t": 1})
    failed = threading.Event()
    producer = make(fresh_broker.bootstrap, topic="t", retry=UNTIL_THE_DEADLINE, on_retry=lambda *_: failed.set())
    await producer.send(act(), deadline_s=seconds(30))
    fresh_broker.suspend()
    given = act()
    waiting = asyncio.ensure_future(producer.send(given, deadline_s=seconds(120)))
    given_up = asyncio.ensure_future(asyncio.to_thread(failed.wait, seconds(60)))
    await asyncio.wait([waiting, given_up], return_when=asyncio.FIRST_COMPLETED)
    assert not waiting.done(), waiting  # it says what became of it
    assert await given_up, "no attempt has failed"
    fresh_broker.resume()
    assert (await waiting).feedback_id == given.feedback_id
    await producer.close()
    ids = {feedback_pb2.Feedback.FromString(record.value).feedback_id for record in await read(fresh_broker.bootstrap, "t")}
    assert given.feedback_id in ids and len(ids) == 2


@pytest.mark.deep
async def test_what_was_acknowledged_is_there_after_the_broker_was_killed(durable_kafka, make):
    create_topics(durable_kafka.bootstrap, {"t": 2})
    producer = make(durable_kafka.bootstrap, topic="t", retry=UNTIL_THE_DEADLINE)
    acknowledged: list[str] = []
    stop = asyncio.Event()

    async def keep_sending(user_id: str) -> None:
        while not stop.is_set():
            acknowledged.append((await producer.send(act(user_id), deadline_s=seconds(120))).feedback_id)

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(keep_sending(f"user-{number}"))
        await _until_more(acknowledged)
        durable_kafka.kill()
        await asyncio.to_thread(durable_kafka.start)
        await _until_more(acknowledged)
        stop.set()
    await producer.close()
    ids = [feedback_pb2.Feedback.FromString(record.value).feedback_id for record in await read(durable_kafka.bootstrap, "t")]
    assert set(ids) == set(acknowledged)  # written twice, perhaps: a record whose acknowledgement was lost


async def _until_more(acknowledged: list[str]) -> None:
    before = len(acknowledged)
    async with asyncio.timeout(seconds(120)):
        while len(acknowledged) < before + 50:
            await asyncio.sleep(0.05)
