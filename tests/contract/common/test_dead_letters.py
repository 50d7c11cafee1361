"""Ten bad records to each topic that the mesh reads: each is in the topic's dead letters with topic, partition, offset and cause.

In process, without a broker: tests/integration/common/test_dead_letters_on_a_broker.py writes the same records to a real one.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.dead_letter_reasons import MALFORMED
from services.common.events.dead_letter_writer import DeadLetterWriter, Name
from services.common.events.envelope import MalformedRecord
from services.common.events.topics import (
    CATALOG,
    CONTROL,
    EXPOSURES,
    FEEDBACK,
    GENERATIONS,
    INFERENCE_REQUESTS,
    LLM_EXAMPLES,
    PROFILES,
    RANKER_BASES,
    RANKER_DELTAS,
    READ,
    REPLICAS,
    SAMPLES,
    Topic,
)
from services.common.events.undeliverable import Undeliverable
from services.common.language.aliases import AliasView
from services.common.platform import telemetry
from services.common.platform.errors import Unavailable
from services.common.platform.kafka_batches import CONTENT_TYPE_UNREADABLE
from services.recommender.catalog import ItemIndex
from services.recommender.updater import kafka_feed
from services.trainer.sample_intake import SampleIntake
from services.tuner.examples import ExampleBook
from services.tuner.kafka_examples import Examples
from streams.features.app import FeatureStream
from streams.features.profile_store import Position
from streams.features.profiles import ProfileFollower
from streams.inference import codec as inference_codec
from streams.inference.core import Failure
from streams.quality.app import QualityStream
from streams.quality.settings import QualitySettings
from streams.strikes import Strikes
from tests.limits import seconds
from tests.unit.streams.curator.test_partition import Bench as Curator
from tests.unit.streams.joiner.test_core import SPEC
from tests.unit.streams.joiner.test_partition import Bench as Joiner
from tests.unit.streams.partitioned.test_runtime import FakeMessage, settle, writing
from tests.waiting import eventually

UNREADABLE = b"\x00t[0] offsets 9 to 9 cannot be decoded"
BAD: tuple[tuple[bytes, list[tuple[str, bytes]]], ...] = (
    (b"\xff\xff", []),
    (b"\x0a\x05ab", [("content-type", b"application/protobuf")]),
    (b"\x1f\x8b\x08\x00", []),
    (b"\x00" + struct.pack(">i", 7) + b"\x081001\nK", []),
    (b"[1]", [("content-type", b"application/json")]),
    (b"{", []),
    (b'{"specversion":"1.0","id":"1","source":"/s","type":"t"}', [("content-type", b"application/cloudevents+json")]),
    (b"not a record", [("traceparent", b"00-a-b-01")]),
    (b"<xml/>", [("content-type", b"text/xml")]),
    (UNREADABLE, [("content-type", CONTENT_TYPE_UNREADABLE.encode())]),
)
FIRST = 100


@dataclass
class Box:
    """A dead-letter topic in memory."""

    letters: list[DeadLetter]
    already: tuple[Name, ...] = ()
    outages: int = 0

    def known(self) -> Iterable[Name]:
        return self.already

    def put(self, letters: Sequence[DeadLetter]) -> list[bool]:
        if self.outages:
            self.outages -= 1
            raise Unavailable("no broker")
        self.letters += letters
        return [True] * len(letters)


def bad_messages(topic: Topic) -> list[FakeMessage]:
    return [FakeMessage(topic.name, FIRST + index, value, headers=tuple(headers)) for index, (value, headers) in enumerate(BAD)]


async def by_stream(bench: Any, topic: Topic) -> list[DeadLetter]:
    async with writing(bench.runtime):
        for message in bad_messages(topic):
            await bench.runtime.take(message)
        await settle()
    assert {record.topic for record in bench.output.sent} == {topic.dlq}
    return [DeadLetter.FromString(record.value) for record in bench.output.sent]


async def by_follower(topic: Topic, take: Callable[[DeadLetterWriter, list[Any]], object]) -> list[DeadLetter]:
    box = Box([])
    writer = DeadLetterWriter(topic, box)
    take(writer, bad_messages(topic))
    await asyncio.to_thread(writer.close, seconds(10))
    return box.letters


async def samples(monkeypatch: pytest.MonkeyPatch) -> list[DeadLetter]:
    letters: list[DeadLetter] = []
    source = SimpleNamespace(hold=lambda _: None, poll=lambda _: bad_messages(SAMPLES))
    pushed: list[tuple[int, Any]] = []
    merge = SimpleNamespace(position=SimpleNamespace(partitions=[0]), buffered=lambda _: 0, push=lambda *pair: pushed.append(pair))
    intake = SampleIntake(source, SPEC, SimpleNamespace(send=letters.append), SAMPLES.name, telemetry.disabled())
    intake.take(SimpleNamespace(merge=merge, note_unusable=lambda: None), 0)
    assert len(pushed) == len(BAD)  # the merge steps over them
    return letters


async def inference_requests(monkeypatch: pytest.MonkeyPatch) -> list[DeadLetter]:
    letters = []
    for message in bad_messages(INFERENCE_REQUESTS):
        with pytest.raises(MalformedRecord) as caught:
            inference_codec.read_question(message)
        letters.append(inference_codec.write_dead_letter(message, Failure(reason=MALFORMED, detail=str(caught.value)), 1))
    return letters


async def ranker(topic: Topic, monkeypatch: pytest.MonkeyPatch) -> list[DeadLetter]:
    """The updater's feed, with a broker that holds these records."""
    box = Box([])
    consumer = SimpleNamespace(poll=lambda **_: {kafka_feed.TopicPartition(topic.name, 0): bad_messages(topic)}, close=lambda: None)
    monkeypatch.setattr(kafka_feed, "assigned_consumer", lambda *_, **__: consumer)
    monkeypatch.setattr(kafka_feed, "drain_to_end", lambda _: bad_messages(topic))
    monkeypatch.setattr(kafka_feed, "RenewedProducer", lambda *_, **__: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(kafka_feed, "dead_letter_writer", lambda _, of, **__: DeadLetterWriter(of, box))
    feed = kafka_feed.KafkaFeed("nowhere", model="m", replica_id="r", schema_hash="s")
    if topic is RANKER_BASES:
        assert feed.new_bases() == []
    else:
        assert [record.delta for record in feed.deltas(0)] == [None] * len(BAD)
    await asyncio.to_thread(feed.close)
    return box.letters


async def profiles(_: Any) -> list[DeadLetter]:
    """The feature stream, with a broker that takes its letters and a Redis that takes its position."""
    sent: list[Any] = []

    async def send(records: Sequence[Any]) -> None:
        sent.extend(records)

    async def save(*_: Any) -> bool:
        return True

    stream: Any = SimpleNamespace(_producer=SimpleNamespace(send=send), _undeliverable=Undeliverable(telemetry.disabled()))
    set_aside = partial(FeatureStream._set_aside, stream)
    follower = ProfileFollower(0, SimpleNamespace(save=save), Strikes(None), set_aside)
    assert await follower.take(bad_messages(PROFILES), None, Position(1, FIRST + len(BAD)))
    assert {record.topic for record in sent} == {PROFILES.dlq}
    return [DeadLetter.FromString(record.value) for record in sent]


async def replicas(monkeypatch: pytest.MonkeyPatch) -> list[DeadLetter]:
    box = Box([])
    stream = QualityStream(QualitySettings(), telemetry.disabled())
    stream._letters = DeadLetterWriter(REPLICAS, box)
    records = [SimpleNamespace(**asdict(message), timestamp=1) for message in bad_messages(REPLICAS)]
    stream._read(SimpleNamespace(poll=lambda _: records, started_ms=0))
    await asyncio.to_thread(stream._letters.close, seconds(10))
    return box.letters


def follow(topic: Topic, reader: Callable[[DeadLetterWriter], Any]) -> Callable[[Any], Awaitable[list[DeadLetter]]]:
    return lambda _: by_follower(topic, lambda writer, records: reader(writer).extend(records))


READERS: dict[Topic, Callable[[Any], Awaitable[list[DeadLetter]]]] = {
    EXPOSURES: lambda _: by_stream(Joiner(), EXPOSURES),
    FEEDBACK: lambda _: by_stream(Joiner(), FEEDBACK),
    GENERATIONS: lambda _: by_stream(Curator(), GENERATIONS),
    SAMPLES: samples,
    INFERENCE_REQUESTS: inference_requests,
    RANKER_DELTAS: lambda monkeypatch: ranker(RANKER_DELTAS, monkeypatch),
    RANKER_BASES: lambda monkeypatch: ranker(RANKER_BASES, monkeypatch),
    REPLICAS: replicas,
    PROFILES: profiles,
    CATALOG: follow(CATALOG, lambda writer: ItemIndex(10, on_refused=writer.set_aside)),
    CONTROL: follow(CONTROL, lambda writer: AliasView(on_refused=writer.set_aside)),
    LLM_EXAMPLES: follow(LLM_EXAMPLES, lambda writer: Examples(ExampleBook(max_per_task=5, max_tasks=5), on_refused=writer.set_aside)),
}


def test_every_topic_that_the_mesh_reads_is_among_them() -> None:
    assert READERS.keys() == set(READ)


@pytest.mark.parametrize("topic", READ, ids=lambda topic: topic.name)
async def test_a_bad_record_is_in_the_dead_letters_of_its_topic(topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = await READERS[topic](monkeypatch)
    assert [(each.source_topic, each.source_partition, each.source_offset) for each in letters] == [
        (topic.name, 0, FIRST + index) for index in range(len(BAD))
    ]
    assert [each.value for each in letters] == [value for value, _ in BAD]
    assert {each.reason for each in letters} == {MALFORMED}
    assert all(each.detail and each.failed_at_ms for each in letters)
    assert letters[7].headers["traceparent"] == b"00-a-b-01"


async def test_a_record_with_a_letter_gets_no_other_at_the_next_start() -> None:
    box = Box([], already=((0, FIRST), (0, FIRST + 3), (1, FIRST + 4)))
    writer = DeadLetterWriter(CATALOG, box)
    for message in [*bad_messages(CATALOG), *bad_messages(CATALOG)]:
        writer.set_aside(message, "cause")
    await asyncio.to_thread(writer.close, seconds(10))
    assert sorted({each.source_offset for each in box.letters}) == [FIRST + index for index in range(10) if index not in (0, 3)]


def test_letters_wait_while_the_broker_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.common.events.dead_letter_writer._RETRY_S", 0.01)
    box = Box([], outages=3)
    writer = DeadLetterWriter(CATALOG, box)
    for message in bad_messages(CATALOG):
        writer.set_aside(message, "cause")
    eventually(lambda: len(box.letters) == len(BAD), every_s=0.01)
    writer.close()
    assert [each.source_offset for each in box.letters] == [FIRST + index for index in range(10)]


def test_what_waits_is_bounded_at_ten_times_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.common.events.dead_letter_writer._MAX_WAITING_BYTES", 100_000)
    box = Box([], outages=10**9)
    writer = DeadLetterWriter(CATALOG, box)
    for offset in range(1_000):
        writer.set_aside(FakeMessage(CATALOG.name, offset, b"x" * 1_000), "cause")
    assert 50_000 < sum(letter.ByteSize() for letter in writer._waiting) <= 100_000
    writer.close()
