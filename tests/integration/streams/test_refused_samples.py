"""What the topics of the streams' results refuse, on real brokers: it is a dead letter, once, and the streams go on."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter
from tunemesh.events.v1.quality_pb2 import QualityWindow

from services.common.events.envelope import headers_for
from services.common.events.undeliverable import EXCERPT_BYTES
from services.common.platform.kafka import assigned_consumer, drain_to_end, end_offsets
from services.common.platform.partitioning import partition_of
from services.mesh.runner.topics import create_topics, mesh_topic_partitions
from tests.integration.streams.test_joiner import plain_join
from tests.integration.streams.test_quality import QualityProcess, wait_for_a_new_window
from tests.integration.streams.traffic import PARTITIONS, SESSION_TIMEOUT_MS, SPEC_PATH, Outcome, Process, Traffic, read_outcome
from tests.limits import seconds

pytestmark = pytest.mark.integration

WINDOW_MS, HORIZON_MS = 2_000, 3_500
LIMIT = 20_000
# Of a variant's name, which the joiner repeats in each sample, and quality in each window.
LARGE = 50_000


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    started: list[Process] = []

    def start_one(bootstrap: str) -> Process:
        env = {
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "TUNEMESH_FEATURE_SPEC": str(SPEC_PATH),
            "TUNEMESH_USER_PARTITIONS": str(PARTITIONS),
            "TUNEMESH_TELEMETRY_DIR": str(tmp_path / "telemetry"),
            "TUNEMESH_JOINER_PORT": "0",
            "TUNEMESH_JOINER_SESSION_TIMEOUT_MS": SESSION_TIMEOUT_MS,
            "TUNEMESH_JOINER_WINDOW_MS": str(WINDOW_MS),
            "TUNEMESH_JOINER_LATE_HORIZON_MS": str(HORIZON_MS),
        }
        started.append(Process("streams.joiner", tmp_path / f"joiner-{len(started)}.log", env))
        started[-1].wait_for("taken up", count=PARTITIONS)
        return started[-1]

    yield start_one
    for process in started:
        process.stop()


def letters_of(bootstrap: str, topic: str) -> list[DeadLetter]:
    consumer = assigned_consumer(bootstrap, f"{topic}.dlq.v1", start="beginning", client_id="test")
    try:
        return [DeadLetter.FromString(record.value) for record in drain_to_end(consumer)]
    finally:
        consumer.close()


def until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + seconds(timeout_s)
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def committed(bootstrap: str, topic: str) -> dict[int, int]:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    group, partitions = "tunemesh-joiner", [TopicPartition(topic, number) for number in range(PARTITIONS)]
    try:
        return {at.partition: found.offset for at, found in admin.list_group_offsets({group: partitions})[group].items()}
    finally:
        admin.close()


def ends(bootstrap: str, topic: str) -> dict[int, int]:
    consumer = assigned_consumer(bootstrap, topic, start="beginning", client_id="test")
    try:
        return {at.partition: end for at, end in end_offsets(consumer).items()}
    finally:
        consumer.close()


def check_samples(outcome: Outcome, traffic: Traffic, large: Traffic) -> None:
    """Each sample of the small requests stands there once, none of the large ones, and ticks are in their order."""
    written = Counter(sample.sample_id for group in outcome.groups for sample in group.samples)
    assert written == Counter(plain_join(traffic).keys())
    for ticks in outcome.ticks.values():
        assert all(earlier.tick < later.tick for earlier, later in itertools.pairwise(ticks))
    assert not {exposure.request_id for exposure in large.exposures} & {group.request_id for group in outcome.groups}


def run_traffic(traffic: Traffic, large: Traffic, expose_large: Callable[[], None]) -> None:
    """A large request behind each ten small ones, all of them answered."""
    for number in range(40):
        traffic.answer(traffic.expose())
        if number % 10 == 9:
            expose_large()
        time.sleep(0.02)
    traffic.producer.flush()
    large.producer.flush()


def test_a_refused_sample_is_a_dead_letter_and_neither_ends_the_joiner_nor_holds_back_its_offset(durable_kafka: Any, start) -> None:
    bootstrap = durable_kafka.bootstrap
    create_topics(bootstrap, mesh_topic_partitions(user_partitions=PARTITIONS), {"samples.v1": {"max.message.bytes": str(LIMIT)}})
    joiner = start(bootstrap)
    with Traffic(bootstrap) as traffic, Traffic(bootstrap, seed=1) as large:
        run_traffic(traffic, large, lambda: large.answer(large.expose(variant="v" * LARGE)) and None)
        wanted = plain_join(traffic).keys()
        outcome = read_outcome(bootstrap, lambda found: wanted <= found.samples.keys(), timeout_s=120)
        check_samples(outcome, traffic, large)
        assert outcome.reasons == {}
        # All that is settled is committed, the large requests too: the next joiner reads none of them again.
        until(lambda: committed(bootstrap, "feedback.v1") == ends(bootstrap, "feedback.v1"), "feedback is not committed")
        until(lambda: committed(bootstrap, "exposures.v1") == ends(bootstrap, "exposures.v1"), "exposures are not committed")
        letters = letters_of(bootstrap, "samples.v1")
        assert {letter.reason for letter in letters} == {"undeliverable"}
        assert {letter.key.decode() for letter in letters} == {exposure.user_id for exposure in large.exposures}
        assert {letter.source_partition for letter in letters} == {partition_of(letter.key, PARTITIONS) for letter in letters}
        for letter in letters:
            assert "MessageSizeTooLarge" in letter.detail and f"has {len(letter.value)} bytes" in letter.detail
            assert len(letter.value) > LARGE, "the dead letters take the whole record, which can be put back"
        assert len({letter.source_offset for letter in letters}) == len(letters) >= len(large.exposures)
        assert joiner.stop() == 0
        start(bootstrap)
        feedback = traffic.answer(traffic.expose())
        traffic.producer.flush()
        read_outcome(bootstrap, lambda found: feedback.feedback_id in found.joined)
        assert letters_of(bootstrap, "samples.v1") == letters


def test_a_sample_larger_than_any_record_of_ours_is_a_dead_letter_on_the_embedded_broker_too(fresh_broker, mesh_topics, start) -> None:
    bootstrap = fresh_broker.bootstrap
    mesh_topics(bootstrap, user_partitions=PARTITIONS)
    joiner = start(bootstrap)
    generous = KafkaProducer(bootstrap_servers=bootstrap, acks="all", max_request_size=4_000_000, allow_auto_create_topics=False)
    with Traffic(bootstrap) as traffic, Traffic(bootstrap, seed=1) as large:

        def expose_large() -> None:
            exposure = large.expose(send=False, variant="v" * 1_200_000)
            headers = headers_for("test", "/test")
            generous.send("exposures.v1", exposure.SerializeToString(), exposure.user_id.encode(), headers).get(seconds(20))
            large.exposures.append(exposure)
            large.answer(exposure)

        run_traffic(traffic, large, expose_large)
        generous.close(timeout=seconds(5))
        wanted = plain_join(traffic).keys()
        outcome = read_outcome(bootstrap, lambda found: wanted <= found.samples.keys(), timeout_s=120)
        check_samples(outcome, traffic, large)
        until(lambda: len(letters_of(bootstrap, "samples.v1")) >= len(large.exposures), "a letter is missing")
        for letter in letters_of(bootstrap, "samples.v1"):
            assert (letter.reason, len(letter.value)) == ("undeliverable", EXCERPT_BYTES)
            assert "more than the 1000000" in letter.detail
        assert joiner.stop() == 0


def test_a_refused_window_of_the_quality_stream_is_a_dead_letter_and_the_others_are_written(durable_kafka: Any, tmp_path: Path) -> None:
    bootstrap = durable_kafka.bootstrap
    # The letters' topic has room for the key, which is as large, and for an excerpt beside it.
    limit, more = ({"max.message.bytes": str(size)} for size in (LIMIT, LARGE + LIMIT))
    create_topics(bootstrap, mesh_topic_partitions(user_partitions=PARTITIONS), {"quality.v1": limit, "quality.v1.dlq.v1": more})
    process = QualityProcess(bootstrap, tmp_path)
    try:
        process.wait_for("reading from")
        with Traffic(bootstrap) as traffic:
            for _ in range(2):
                wait_for_a_new_window()
                for _ in range(5):
                    traffic.expose(num_items=5)
                    traffic.expose(num_items=5, variant="v" * LARGE)
                traffic.producer.flush()
            until(lambda: len(letters_of(bootstrap, "quality.v1")) >= 2, "no letter came")
            wait_for_a_new_window()
            consumer = assigned_consumer(bootstrap, "quality.v1", start="beginning", client_id="test")
            windows = [QualityWindow.FromString(record.value) for record in drain_to_end(consumer)]
            consumer.close()
        shown = [window for window in windows if window.kind == "recommend"]
        assert {window.variant for window in shown} == {"default"}
        assert sum(window.metrics["requests"] for window in shown) == 10
        assert len({(window.kind, window.variant, window.model_version, window.window_start_ms) for window in windows}) == len(windows)
        letters = letters_of(bootstrap, "quality.v1")
        assert all(len(letter.value) == EXCERPT_BYTES and b"v" * 900 in letter.value for letter in letters)
        assert len({letter.source_offset for letter in letters}) == len(letters)
        assert {(letter.source_topic, letter.reason) for letter in letters} == {("quality.v1", "undeliverable")}
        assert process.stop() == 0
    finally:
        process.stop()
