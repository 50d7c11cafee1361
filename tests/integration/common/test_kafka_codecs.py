"""Every codec, written by each producer of the mesh and read by either client, on a real broker (batches of other writers: unit tests)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, get_args

import pytest
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.dead_letter_writer import KafkaLetterBox
from services.common.events.dead_letters import dead_letter
from services.common.events.envelope import parse_value
from services.common.events.topics import Topic
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.common.platform.kafka_async import AsyncProducer
from services.common.platform.kafka_compression import Compression
from services.common.platform.kafka_producer import RenewedProducer
from services.common.platform.kafka_record import Record
from services.mesh.runner.topics import create_topics
from services.trainer.kafka_calls import make_producer
from streams.logs import LogReader
from streams.worker import new_app
from tests.limits import seconds

pytestmark = pytest.mark.integration

VALUES = [b"value %d " % number * 100 for number in range(10)]
KEY = b"k"


async def by_asyncio(bootstrap: str, topic: str, compression: Compression) -> None:
    producer = AsyncProducer(bootstrap, client_id="test", compression=compression)
    assert await producer.start(wait_s=seconds(10))
    await producer.send([Record(topic, KEY, value) for value in VALUES])
    await producer.stop()


async def by_faust(bootstrap: str, topic: str, compression: Compression) -> None:
    app = new_app("test-codecs", bootstrap_servers=bootstrap, worker_id="w", session_timeout_ms=6_000, compression=compression)
    producer = await app.maybe_start_producer()
    for value in VALUES:
        await producer.send_and_wait(topic, KEY, value, 0, None, {})
    await producer.stop()


async def by_threads(producer: RenewedProducer, topic: str) -> None:
    sent = [producer.send(topic, value, KEY) for value in VALUES]
    await asyncio.to_thread(lambda: [future.get(seconds(10)) for future in sent])
    await asyncio.to_thread(producer.close)


async def by_replica(bootstrap: str, topic: str, compression: Compression) -> None:
    await by_threads(await asyncio.to_thread(RenewedProducer, bootstrap, client_id="test", compression=compression), topic)


async def by_trainer(bootstrap: str, topic: str, compression: Compression) -> None:
    await by_threads(await asyncio.to_thread(make_producer, bootstrap, compression), topic)


async def by_letters(bootstrap: str, topic: str, compression: Compression) -> None:
    of = Topic(name=topic.removesuffix(".dlq.v1"), key="", value="", partitioning="single", cleanup="delete")
    letters = [
        dead_letter(topic=of.name, partition=0, offset=offset, reason="malformed", detail="test", key=KEY, value=value, headers=())
        for offset, value in enumerate(VALUES)
    ]
    await asyncio.to_thread(KafkaLetterBox(bootstrap, of, source="/test", compression=compression).put, letters)


PRODUCERS: dict[str, Callable[[str, str, Compression], Awaitable[None]]] = {
    "asyncio": by_asyncio,
    "faust": by_faust,
    "replica": by_replica,
    "trainer": by_trainer,
    "letters": by_letters,
}


@pytest.mark.parametrize("compression", get_args(Compression))
async def test_what_each_producer_writes_is_compressed_as_set_and_read_by_either_client(
    kafka_bootstrap: str, topics: Callable[..., str], codecs_read: dict[str, set[str]], compression: Compression
) -> None:
    names = {name: f"{topics(f'codecs-{name}-{compression}')}.dlq.v1" for name in PRODUCERS}
    create_topics(kafka_bootstrap, dict.fromkeys(names.values(), 1))

    async def write_and_read(name: str) -> tuple[list[bytes], list[bytes]]:
        await PRODUCERS[name](kafka_bootstrap, names[name], compression)
        consumer = await asyncio.to_thread(assigned_consumer, kafka_bootstrap, names[name], start="beginning", client_id="test")
        by_kafka_python = await asyncio.to_thread(drain_to_end, consumer)
        await asyncio.to_thread(consumer.close)
        by_aiokafka: list[Any] = []
        await LogReader(kafka_bootstrap, "test-codecs").find_last(names[name], 0, by_aiokafka.append)
        return [_value(name, record) for record in by_kafka_python], [_value(name, record) for record in by_aiokafka]

    read = await asyncio.gather(*[write_and_read(name) for name in PRODUCERS])
    assert dict(zip(PRODUCERS, read, strict=True)) == dict.fromkeys(PRODUCERS, (VALUES, VALUES))
    assert codecs_read == {topic: {compression} for topic in names.values()}


def _value(name: str, record: Any) -> bytes:
    value: bytes = record.value if name != "letters" else parse_value(record.value, record.headers, DeadLetter).value
    return value
