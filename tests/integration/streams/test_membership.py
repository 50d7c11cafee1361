"""A worker that the broker keeps out of its group ends and says why; it does not wait for partitions for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer

from services.mesh.runner.topics import create_topics, mesh_topic_partitions
from tests.integration.streams.traffic import PARTITIONS, SPEC_PATH, Process

pytestmark = pytest.mark.integration


@pytest.fixture
def foreign_member(fresh_broker: Any) -> Iterator[str]:
    """A consumer of somebody else under the joiner's group id, which shares out partitions by range. Yields the bootstrap servers."""
    bootstrap = fresh_broker.bootstrap
    create_topics(bootstrap, mesh_topic_partitions(user_partitions=PARTITIONS))
    consumer = KafkaConsumer("feedback.v1", bootstrap_servers=bootstrap, group_id="tunemesh-joiner")
    is_over = threading.Event()

    def stay() -> None:
        while not is_over.is_set():
            consumer.poll(timeout_ms=200)

    thread = threading.Thread(target=stay)
    thread.start()
    while not consumer.assignment():
        assert thread.is_alive()
        is_over.wait(0.1)
    yield bootstrap
    is_over.set()
    thread.join()
    consumer.close()


def test_a_worker_whose_group_is_shared_out_another_way_ends_with_the_reason(foreign_member: str, tmp_path: Path) -> None:
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": foreign_member,
        "TUNEMESH_FEATURE_SPEC": str(SPEC_PATH),
        "TUNEMESH_USER_PARTITIONS": str(PARTITIONS),
        "TUNEMESH_TELEMETRY_DIR": str(tmp_path / "telemetry"),
        "TUNEMESH_JOINER_PORT": "0",
    }
    joiner = Process("streams.joiner", tmp_path / "joiner.log", env)
    try:
        assert joiner.wait() == 1
    finally:
        joiner.stop()
    assert "the broker keeps this worker out of group tunemesh-joiner: " in joiner.log.read_text()
    assert "InconsistentGroupProtocol" in joiner.log.read_text()
