"""Freshness under orphans: the joiner as a process on a real broker, one feedback in a hundred about a request that nobody made.

All orphans lie in the first partition; the second one has the same traffic without any, at the same time, in the same process, and is what
the first is compared with. Times are those in the records: when feedback was accepted, the watermark and the moment of a tick, the
timestamp of a sample's record.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tunemesh.samples.v1 import sample_pb2

from services.common.events.topics import SAMPLES
from services.common.platform.kafka import assigned_consumer
from services.common.platform.partitioning import partition_of
from tests.integration.streams.traffic import PARTITIONS, SESSION_TIMEOUT_MS, SPEC_PATH, Process, Traffic
from tests.limits import seconds
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.deep]

TICK_MS = 500  # the default
# So long an orphan waits for its exposure; far above what a machine that stands still for a moment needs.
WINDOW_MS = round(seconds(60) * 1e3)
NUM_ACTS, ACTS_PER_SECOND, ONE_IN = 600, 40, 100


@dataclass
class Log:
    """samples.v1 as far as it has been read, by partition."""

    ticks: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: {number: [] for number in range(PARTITIONS)})
    """(moment of the tick, watermark), Unix ms."""
    written_ms: dict[str, int] = field(default_factory=dict)
    """Feedback id to the timestamp of the record with its sample."""

    def take(self, record) -> None:
        message = sample_pb2.SampleRecord.FromString(record.value)
        if message.WhichOneof("record") == "tick":
            self.ticks[record.partition].append((message.tick.tick, message.tick.watermark_ms))
            return
        for sample in message.group.samples:
            if sample.feedback_id:
                self.written_ms.setdefault(sample.feedback_id, record.timestamp)

    def passed_ms(self, partition: int, at_ms: int) -> int:
        """The moment of the first tick that says that everything up to `at_ms` is done."""
        return next(moment_ms for moment_ms, watermark_ms in self.ticks[partition] if watermark_ms >= at_ms)


@pytest.fixture
def traffic(fresh_broker, mesh_topics, tmp_path: Path) -> Iterator[Traffic]:
    """Traffic before a joiner that has taken up its partitions."""
    mesh_topics(fresh_broker.bootstrap, user_partitions=PARTITIONS)
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": fresh_broker.bootstrap,
        "TUNEMESH_FEATURE_SPEC": str(SPEC_PATH),
        "TUNEMESH_USER_PARTITIONS": str(PARTITIONS),
        "TUNEMESH_TELEMETRY_DIR": str(tmp_path / "telemetry"),
        "TUNEMESH_JOINER_PORT": "0",
        "TUNEMESH_JOINER_SESSION_TIMEOUT_MS": SESSION_TIMEOUT_MS,
        "TUNEMESH_JOINER_WINDOW_MS": str(WINDOW_MS),
    }
    process = Process("streams.joiner", tmp_path / "joiner.log", env)
    try:
        process.wait_for("taken up", count=PARTITIONS)
        with Traffic(fresh_broker.bootstrap) as sender:
            yield sender
    finally:
        process.stop()


def act(traffic: Traffic) -> tuple[list[list], list]:
    """Send the acts at a steady pace; return those that have an exposure, by partition, and the orphans."""
    users = [
        next(name for name in (f"u{n}" for n in range(100)) if partition_of(name.encode(), PARTITIONS) == p) for p in range(PARTITIONS)
    ]
    answered, orphans = [[] for _ in range(PARTITIONS)], []
    began = time.monotonic()
    for number in range(NUM_ACTS):
        time.sleep(max(0.0, began + number / ACTS_PER_SECOND - time.monotonic()))
        partition, is_orphan = number % PARTITIONS, number % ONE_IN == 0
        feedback = traffic.answer(traffic.expose(user_id=users[partition], send=not is_orphan))
        (orphans if is_orphan else answered[partition]).append(feedback)
    traffic.producer.flush()
    return answered, orphans


def test_samples_and_watermark_are_as_fresh_with_orphans_as_without(traffic: Traffic, fresh_broker) -> None:
    answered, orphans = act(traffic)
    last_ms = max(feedback.accepted_at_ms for feedback in traffic.feedback)
    log, consumer = Log(), assigned_consumer(fresh_broker.bootstrap, SAMPLES.name, start="beginning", client_id="test")

    def is_read() -> bool:
        for records in consumer.poll(timeout_ms=200).values():
            for record in records:
                log.take(record)
        return all(ticks and ticks[-1][1] >= last_ms for ticks in log.ticks.values())

    eventually(is_read, limit_s=150)  # an orphan that held the watermark would hold it for the window
    consumer.close()

    assert len(orphans) * ONE_IN == NUM_ACTS
    assert log.written_ms.keys() == {feedback.feedback_id for partition in answered for feedback in partition}
    held_ms = [log.passed_ms(0, orphan.accepted_at_ms) - orphan.accepted_at_ms for orphan in orphans]
    assert max(held_ms) < WINDOW_MS / 2, "the watermark waited for an orphan"  # which would be for the whole window
    with_orphans, without = (
        {
            "watermark": np.percentile([log.passed_ms(number, each.accepted_at_ms) - each.accepted_at_ms for each in acts], (50, 95)),
            "sample": np.percentile([log.written_ms[each.feedback_id] - each.accepted_at_ms for each in acts], (50, 95)),
        }
        for number, acts in enumerate(answered)
    )
    print(f"ms, median and 95 %: with orphans {with_orphans}, without {without}, orphans passed after {held_ms}")
    for what, delays_ms in with_orphans.items():
        assert (delays_ms <= 1.5 * without[what] + TICK_MS).all(), f"{what}: {delays_ms} ms with orphans, {without[what]} without"
