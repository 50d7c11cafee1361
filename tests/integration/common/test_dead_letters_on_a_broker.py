"""Ten bad records to each topic that the mesh reads, on a real broker: each is in the topic's dead letters once, with where it lay and why.

The streams run as their processes. What services read runs in this one, of the parts that their servers wire: their reader of the log, and
their writer of dead letters. All compress what they write, and the letters are read out of such batches. Which bad records there are, and
what a letter holds: tests/contract/common/test_dead_letters.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.dead_letter_reasons import MALFORMED
from services.common.events.dead_letter_writer import dead_letter_writer
from services.common.events.envelope import parse_value
from services.common.events.topics import CATALOG, CONTROL, LLM_EXAMPLES, READ, SAMPLES, Topic
from services.common.language.aliases import AliasView
from services.common.platform import telemetry
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.common.platform.kafka_compression import Compression
from services.common.platform.kafka_producer import durable_producer
from services.common.platform.topic_follower import Reader, TopicFollower
from services.recommender.catalog import ItemIndex
from services.recommender.updater.kafka_feed import KafkaFeed
from services.trainer.kafka_calls import make_producer
from services.trainer.kafka_samples import KafkaDeadLetters, KafkaSamples
from services.trainer.sample_intake import SampleIntake
from services.tuner.examples import ExampleBook
from services.tuner.kafka_examples import Examples
from streams.quality.app import QualityStream
from streams.quality.settings import QualitySettings
from tests.contract.common.test_dead_letters import BAD
from tests.integration.streams.traffic import PARTITIONS, SESSION_TIMEOUT_MS, SPEC, SPEC_PATH, Process
from tests.limits import seconds
from tests.waiting import eventually

pytestmark = pytest.mark.integration

STREAMS = ("joiner", "curator", "inference", "features")
COMPRESSION: Compression = "zstd"


@contextmanager
def streams(bootstrap: str, redis_url: str, folder: Path) -> Iterator[None]:
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
        "REDIS_URL": redis_url,
        "TUNEMESH_KAFKA_COMPRESSION": COMPRESSION,
        "TUNEMESH_FEATURE_SPEC": str(SPEC_PATH),
        "TUNEMESH_USER_PARTITIONS": str(PARTITIONS),
        "TUNEMESH_TELEMETRY_DIR": str(folder / "telemetry"),
        "TUNEMESH_CURATOR_STORE_DIR": str(folder / "store"),
        "TUNEMESH_INFERENCE_ROUTER_TARGET": "127.0.0.1:1",
    }
    for stream in STREAMS:
        env |= {f"TUNEMESH_{stream.upper()}_PORT": "0", f"TUNEMESH_{stream.upper()}_SESSION_TIMEOUT_MS": SESSION_TIMEOUT_MS}
    processes = [Process(f"streams.{stream}", folder / f"{stream}.log", env) for stream in STREAMS]
    try:
        yield
    finally:
        with ThreadPoolExecutor() as side_by_side:
            assert list(side_by_side.map(Process.stop, processes)) == [0] * len(processes)


@contextmanager
def quality(bootstrap: str) -> Iterator[None]:
    """Returns once it reads: what comes before is in no window."""
    stream = QualityStream(
        QualitySettings(kafka_bootstrap_servers=bootstrap, kafka_compression=COMPRESSION, feature_spec_path=SPEC_PATH), telemetry.disabled()
    )
    serving = threading.Event()
    server: Any = SimpleNamespace(set_serving_threadsafe=lambda is_serving: serving.set() if is_serving else None)
    thread = threading.Thread(target=stream._work, args=(server,), daemon=True)
    thread.start()
    try:
        assert serving.wait(seconds(30))
        yield
    finally:
        stream._stopped.set()
        thread.join(seconds(30))
        stream._letters.close(seconds(10))


@contextmanager
def followed(bootstrap: str, topic: Topic, reader_of: Callable[[Any], Reader]) -> Iterator[None]:
    letters = dead_letter_writer(bootstrap, topic, source="/test", compression=COMPRESSION)
    follower = TopicFollower(bootstrap, topic.name, reader_of(letters.set_aside), client_id="test")
    follower.start()
    try:
        yield
    finally:
        follower.stop()
        letters.close(seconds(10))


def update(bootstrap: str) -> None:
    """As the updater's worker: what bases there are, then the deltas."""
    feed = KafkaFeed(bootstrap, model=SPEC.model, schema_hash=SPEC.schema_hash, replica_id="test", compression=COMPRESSION)
    try:
        assert feed.new_bases() == []
        read: list[Any] = []
        eventually(lambda: read.extend(feed.deltas(0)) or len(read), lambda count: count == len(BAD))
        assert {record.delta for record in read} == {None}
    finally:
        feed.close()


def train(bootstrap: str) -> None:
    """As the trainer's worker, with an epoch that only counts."""
    samples, producer = KafkaSamples(bootstrap, SAMPLES.name, PARTITIONS), make_producer(bootstrap, COMPRESSION)
    pushed: list[Any] = []
    merge = SimpleNamespace(
        position=SimpleNamespace(partitions=range(PARTITIONS)), buffered=lambda _: 0, push=lambda _, record: pushed.append(record)
    )
    epoch: Any = SimpleNamespace(merge=merge, note_unusable=lambda: None)
    letters = KafkaDeadLetters(SAMPLES.dlq, producer)
    intake = SampleIntake(samples, SPEC, letters, SAMPLES.name, telemetry.disabled())
    try:
        samples.seek([0] * PARTITIONS)
        eventually(lambda: intake.take(epoch, 100) or len(pushed), lambda count: count == len(BAD))
        letters.flush()
    finally:
        samples.close()
        producer.close()


def write_bad(bootstrap: str) -> None:
    producer = durable_producer(bootstrap, client_id="test", linger_ms=5)
    sent = [
        producer.send(topic.name, value, b"%d" % number, headers, partition=0)
        for topic in READ
        for number, (value, headers) in enumerate(BAD)
    ]
    for future in sent:
        future.get(seconds(10))
    producer.close()


class Letters:
    """What is in the dead-letter topics, by source topic, in the order of the records that are set aside."""

    def __init__(self, bootstrap: str) -> None:
        self._consumer = assigned_consumer(bootstrap, READ[0].dlq, start="beginning", client_id="test")
        found = {topic.dlq: self._consumer.partitions_for_topic(topic.dlq) for topic in READ}
        partitions = [TopicPartition(name, number) for name, numbers in found.items() for number in numbers]
        self._consumer.assign(partitions)
        self._consumer.seek_to_beginning(*partitions)
        self._read: dict[str, list[DeadLetter]] = {topic.dlq: [] for topic in READ}

    def take(self, records: Iterable[Any]) -> None:
        for record in records:
            self._read[record.topic].append(parse_value(record.value, record.headers, DeadLetter))

    def missing(self) -> list[str]:
        for records in self._consumer.poll(timeout_ms=200).values():
            self.take(records)
        return [name for name, letters in self._read.items() if len(letters) < len(BAD)]

    def to_the_end(self) -> dict[Topic, list[DeadLetter]]:
        self.take(drain_to_end(self._consumer))
        self._consumer.close()
        return {topic: sorted(self._read[topic.dlq], key=lambda letter: letter.source_offset) for topic in READ}


def test_ten_bad_records_of_each_topic_are_in_its_dead_letters(
    fresh_broker, mesh_topics, redis_url: str, codecs_read: dict[str, set[str]], tmp_path: Path
) -> None:
    bootstrap = fresh_broker.bootstrap
    mesh_topics(bootstrap, user_partitions=PARTITIONS)
    letters = Letters(bootstrap)
    with ExitStack() as running:
        running.enter_context(streams(bootstrap, redis_url, tmp_path))
        running.enter_context(quality(bootstrap))
        write_bad(bootstrap)
        running.enter_context(followed(bootstrap, CATALOG, lambda aside: ItemIndex(10, on_refused=aside)))
        running.enter_context(followed(bootstrap, CONTROL, lambda aside: AliasView(on_refused=aside)))
        running.enter_context(followed(bootstrap, LLM_EXAMPLES, lambda aside: Examples(ExampleBook(max_per_task=5, max_tasks=5), aside)))
        update(bootstrap)
        train(bootstrap)
        eventually(letters.missing, lambda names: not names)
    found = letters.to_the_end()  # after the end of all: nobody writes a second one
    assert {topic.name: [(each.source_topic, each.source_partition, each.source_offset) for each in found[topic]] for topic in READ} == {
        topic.name: [(topic.name, 0, offset) for offset in range(len(BAD))] for topic in READ
    }
    values = [value for value, _ in BAD]
    assert {topic.name: [each.value for each in found[topic]] for topic in READ} == {topic.name: values for topic in READ}
    every = [each for topic in READ for each in found[topic]]
    assert {each.reason for each in every} == {MALFORMED}
    assert all(each.detail and each.failed_at_ms for each in every)
    assert codecs_read.items() >= {topic.dlq: {COMPRESSION} for topic in READ}.items()
