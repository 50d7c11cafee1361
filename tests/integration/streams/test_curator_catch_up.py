"""The curator's store of answers brought up to a real broker's log: a new one, one that is behind, one of another broker."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kafka import KafkaProducer
from tunemesh.common.v1 import chat_pb2
from tunemesh.events.v1 import generation_pb2

from services.common.events.wire.generation import parse_generation
from streams.curator.answer_store import AnswerStore
from streams.curator.catch_up import catch_up
from streams.logs import LogReader
from streams.partitioned.records import Record
from tests.limits import seconds

pytestmark = pytest.mark.integration

DAY_MS = 24 * 3_600_000
NOW_MS = time.time_ns() // 1_000_000
NUM_ANSWERS = 40


def generation(number: int) -> generation_pb2.Generation:
    """The first ten ended eight days ago."""
    at_ms = NOW_MS - (8 if number < 10 else 6) * DAY_MS
    messages = [chat_pb2.ChatMessage(role="user", content="How?")]
    return generation_pb2.Generation(
        request_id=f"r{number}", user_id="u", task="helpdesk", question="How?", answer="So.", messages=messages, finished_at_ms=at_ms
    )


@pytest.fixture
async def reader(fresh_broker, mesh_topics) -> AsyncIterator[LogReader]:
    mesh_topics(fresh_broker.bootstrap, user_partitions=1)
    producer = KafkaProducer(bootstrap_servers=fresh_broker.bootstrap, acks="all", allow_auto_create_topics=False)
    for number in range(NUM_ANSWERS):
        value = b"\xff\xff" if number == 20 else generation(number).SerializeToString()
        producer.send("generations.v1", value, b"u", partition=0).get(seconds(10))
    producer.close(timeout=seconds(5))
    reader = LogReader(fresh_broker.bootstrap, "tunemesh-curator")
    await reader.start()
    yield reader
    await reader.stop()


def new_store(folder: Path) -> AnswerStore:
    return AnswerStore(folder / "answers-0.sqlite", max_bytes=1024 * 1024)


async def caught_up(store: AnswerStore, reader: LogReader, end: int = NUM_ANSWERS) -> list[int]:
    """Catch up, and return the numbers of the answers in the store."""
    await catch_up(store, reader, 0, end, window_ms=7 * DAY_MS, now_ms=NOW_MS)
    return [number for number in range(NUM_ANSWERS) if store.get(f"r{number}") is not None]


def put(store: AnswerStore, message: generation_pb2.Generation, offset: int) -> None:
    value = message.SerializeToString()
    store.put(parse_generation(value, ()), Record("generations.v1", 0, offset, b"u", value, ()))


async def test_a_store_has_the_answers_of_the_window_below_the_taken_up_offset(tmp_path, reader) -> None:
    store = new_store(tmp_path)
    assert await caught_up(store, reader, 30) == [*range(10, 20), *range(21, 30)]
    assert (store.next_offset, store.newest()) == (30, (29, "r29"))
    # The next worker takes up further on, as another host has worked meanwhile.
    assert await caught_up(store, reader) == [*range(10, 20), *range(21, 40)]
    assert await catch_up(store, reader, 0, NUM_ANSWERS, window_ms=7 * DAY_MS, now_ms=NOW_MS) == 0
    store.close()


async def test_a_store_that_is_ahead_of_the_log_is_of_another_broker(tmp_path, reader) -> None:
    store = new_store(tmp_path)
    put(store, generation(15), 999)
    store.flush(1_000)
    assert await caught_up(store, reader) == [*range(10, 20), *range(21, 40)]
    assert store.newest() == (39, "r39")
    store.close()


async def test_a_store_whose_newest_answer_stands_elsewhere_in_the_log_is_of_another_broker(tmp_path, reader) -> None:
    store = new_store(tmp_path)
    put(store, generation(38), 30)
    store.flush(31)
    assert await caught_up(store, reader) == [*range(10, 20), *range(21, 40)]
    assert store.offset_of("r38") == 38
    store.close()
