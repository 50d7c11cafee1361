"""A record that kills its worker: two processes die of it, the third sets it aside, and everything else is worked on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from tunemesh.events.v1 import dead_letter_pb2

from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.common.ranker.feature_records import user_key
from tests.integration.streams.traffic import PARTITIONS, SESSION_TIMEOUT_MS, SPEC_PATH, Process, Traffic
from tests.limits import seconds

pytestmark = [pytest.mark.integration, pytest.mark.deep]


@pytest.fixture
def traffic(fresh_broker, mesh_topics) -> Iterator[Traffic]:
    mesh_topics(fresh_broker.bootstrap, user_partitions=PARTITIONS)
    with Traffic(fresh_broker.bootstrap) as sender:
        yield sender


def letters(bootstrap: str) -> list[dead_letter_pb2.DeadLetter]:
    consumer = assigned_consumer(bootstrap, "feedback.v1.dlq.v1", start="beginning", client_id="test")
    try:
        return [dead_letter_pb2.DeadLetter.FromString(record.value) for record in drain_to_end(consumer)]
    finally:
        consumer.close()


@pytest.mark.parametrize(
    ("stream", "poison", "cause"),
    [("joiner", "raise", "ZeroDivisionError: nobody thought of that"), ("features", "exit", "the process ended in the middle of it")],
)
def test_the_third_process_sets_the_record_aside_and_goes_on(
    traffic, fresh_broker, redis_url, tmp_path: Path, stream: str, poison: str, cause: str
) -> None:
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": fresh_broker.bootstrap,
        "REDIS_URL": redis_url,
        "TUNEMESH_FEATURE_SPEC": str(SPEC_PATH),
        "TUNEMESH_USER_PARTITIONS": str(PARTITIONS),
        "TUNEMESH_TELEMETRY_DIR": str(tmp_path / "telemetry"),
        f"TUNEMESH_{stream.upper()}_PORT": "0",
        f"TUNEMESH_{stream.upper()}_SESSION_TIMEOUT_MS": SESSION_TIMEOUT_MS,
        "POISONED_STREAM": f"streams.{stream}",
        "POISON": poison,
    }
    for user in ("a", "b", "poison", "c", "d"):
        traffic.answer(traffic.expose(user_id=user))
    traffic.producer.flush()
    for life in range(2):
        assert Process("tests.integration.streams.poisoned", tmp_path / f"{life}.log", env).wait() != 0
        assert letters(fresh_broker.bootstrap) == []
    third = Process("tests.integration.streams.poisoned", tmp_path / "third.log", env)
    try:
        deadline = time.monotonic() + seconds(60)
        while not (found := letters(fresh_broker.bootstrap)):
            assert time.monotonic() < deadline, third.log.read_text()
            time.sleep(0.2)
        (letter,) = found
        assert (letter.source_topic, letter.reason, letter.key) == ("feedback.v1", "killed_worker", b"poison")
        assert f"the worker died on it 2 times: {cause}" in letter.detail
        if stream == "features":
            with Redis.from_url(redis_url) as redis:
                while not all(redis.exists(user_key(user)) for user in "abcd"):
                    assert time.monotonic() < deadline, third.log.read_text()
                    time.sleep(0.1)
                assert not redis.exists(user_key("poison"))
    finally:
        assert third.stop() == 0
