"""Every codec, written by either client of the mesh and read by either, on a real broker (batches of other writers: unit tests)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaProducer

from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.common.platform.kafka_producer import durable_producer
from streams.logs import LogReader
from tests.limits import seconds

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_each_client_reads_what_either_has_compressed(kafka_bootstrap: str, topics: Callable[..., str], codec: str) -> None:
    topic = topics(f"codec-{codec}")
    values = [b"value %d " % number * 100 for number in range(40)]

    def write() -> None:
        producer = durable_producer(kafka_bootstrap, client_id="test", compression_type=codec, linger_ms=50)
        sent = [producer.send(topic, key=b"k", value=value) for value in values[:20]]
        for future in sent:
            future.get(seconds(10))
        producer.close()

    await asyncio.to_thread(write)
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, compression_type=codec, linger_ms=50)
    await producer.start()
    await asyncio.gather(*[await producer.send(topic, value, b"k") for value in values[20:]])
    await producer.stop()

    consumer = await asyncio.to_thread(assigned_consumer, kafka_bootstrap, topic, start="beginning", client_id="test")
    assert [record.value for record in await asyncio.to_thread(drain_to_end, consumer)] == values
    consumer.close()
    reader, found = LogReader(kafka_bootstrap, "test-codecs"), []
    await reader.find_last(topic, 0, lambda record: found.append(record.value))
    assert found == values
