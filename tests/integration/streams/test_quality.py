"""The quality stream as a process on a real broker."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tunemesh.common.v1.chat_pb2 import ChatMessage
from tunemesh.events.v1.delta_pb2 import Delta, DeltaHeader, ReplicaStatus
from tunemesh.events.v1.feedback_pb2 import Feedback
from tunemesh.events.v1.generation_pb2 import Generation
from tunemesh.events.v1.quality_pb2 import QualityWindow

from services.common.events.dead_letters import dead_letter
from services.common.events.envelope import header
from services.common.platform.ids import uuid7
from services.common.platform.kafka import assigned_consumer
from services.mesh.runner.topics import mesh_topic_partitions
from tests.integration.streams.traffic import PARTITIONS, SPEC_PATH, Process, Traffic
from tests.limits import seconds

pytestmark = pytest.mark.integration
WINDOW_MS = 4_000


class QualityProcess(Process):
    """The stream with a short window and one window of reference."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        settings = {
            "PORT": 0,
            "METRICS_PORT": 0,
            "WINDOW_MS": WINDOW_MS,
            "REFERENCE_WINDOWS": 1,
            "MIN_REQUESTS": 10,
            "REFERENCE_PATH": folder / "reference.json",
            "WATERMARK_LIMIT_MS": 5_000,
        }
        env = {f"TUNEMESH_QUALITY_{name}": str(value) for name, value in settings.items()}
        shared = {
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "TUNEMESH_FEATURE_SPEC": str(SPEC_PATH),
            "TUNEMESH_USER_PARTITIONS": str(PARTITIONS),
            "TUNEMESH_TELEMETRY_DIR": str(folder / "telemetry"),
        }
        # A log of its own: what an earlier process said there is not said by this one.
        super().__init__("streams.quality", folder / f"quality-{uuid7()}.log", env | shared)

    def scrape(self) -> str:
        self.wait_for("metrics at")
        (url,) = re.findall(r"metrics at (http://\S+)", self.log.read_text())
        with urllib.request.urlopen(url, timeout=seconds(5)) as answer:
            return answer.read().decode()


@pytest.fixture
def quality(fresh_broker, mesh_topics, tmp_path: Path) -> Iterator[Callable[..., QualityProcess]]:
    mesh_topics(fresh_broker.bootstrap, user_partitions=PARTITIONS)
    started: list[QualityProcess] = []

    def start(*, wait: bool = True) -> QualityProcess:
        started.append(QualityProcess(fresh_broker.bootstrap, tmp_path))
        if wait:
            started[-1].wait_for("reading from")
        return started[-1]

    yield start
    for process in started:
        process.stop()


@pytest.fixture
def traffic(fresh_broker) -> Iterator[Traffic]:
    with Traffic(fresh_broker.bootstrap) as sender:
        yield sender


def windows_until(bootstrap: str, enough: Callable[[list[QualityWindow]], bool], *, timeout_s: float = 60.0) -> list[QualityWindow]:
    """Read quality.v1 until the windows so far are enough."""
    consumer = assigned_consumer(bootstrap, "quality.v1", start="beginning", client_id="test", fetch_min_bytes=1)
    found: list[QualityWindow] = []
    deadline = time.monotonic() + seconds(timeout_s)
    try:
        while not enough(found):
            assert time.monotonic() < deadline, found[-6:]
            for batch in consumer.poll(timeout_ms=100).values():
                for record in batch:
                    assert header(record.headers, "ce_type") == "tunemesh.events.v1.QualityWindow"
                    found.append(QualityWindow.FromString(record.value))
                    assert record.key.decode() == found[-1].variant
    finally:
        consumer.close()
    return found


def total(windows: list[QualityWindow], metric: str, **where: str) -> float:
    chosen = [window for window in windows if all(getattr(window, name) == value for name, value in where.items())]
    return sum(window.metrics.get(metric, 0.0) for window in chosen)


def alarms(windows: list[QualityWindow]) -> set[str]:
    return {alarm.name for window in windows for alarm in window.alarms}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def wait_for_a_new_window() -> None:
    """What is sent now comes in one window."""
    time.sleep((WINDOW_MS - now_ms() % WINDOW_MS + 300) / 1e3)


def send_answer(traffic: Traffic) -> None:
    at_ms = now_ms()
    answer = Generation(
        request_id=uuid7(),
        user_id="u1",
        task="answer",
        messages=[ChatMessage(role="user", content="How long?")],
        variant="default",
        model_version="base",
        finish_reason="stop",
        started_at_ms=at_ms - 500,
        first_token_at_ms=at_ms - 400,
        finished_at_ms=at_ms,
    )
    traffic.send("generations.v1", "u1", answer.SerializeToString())
    for kind, value in (("boolean", 1.0), ("boolean", 0.0)):
        feedback = Feedback(feedback_id=uuid7(), request_id=answer.request_id, user_id="u1", kind=kind, value=value, accepted_at_ms=at_ms)
        traffic.send("feedback.v1", "u1", feedback.SerializeToString())


def test_windows_tell_what_the_mesh_did_and_alarms_what_is_wrong(fresh_broker, quality, traffic) -> None:
    process = quality()
    wait_for_a_new_window()
    shown = [traffic.expose(num_items=5) for _ in range(40)]
    shown += [traffic.expose(num_items=5, variant="canary", model_version="2.1", degraded_reason="features_unavailable") for _ in range(10)]
    for exposure in shown[:20]:
        traffic.answer(exposure, value=5.0)
    for exposure in shown[45:]:
        traffic.answer(exposure, value=1.0)
    send_answer(traffic)
    for number in range(3):
        letter = dead_letter(topic="feedback.v1", partition=0, offset=number, reason="orphan", detail="", value=b"v")
        traffic.send("feedback.v1.dlq.v1", "u", letter.SerializeToString())
    replica = ReplicaStatus(replica_id="host-1", epoch=1, watermark_ms=now_ms() - 20_000, reported_at_ms=now_ms())
    traffic.send("replicas.v1", "host-1", replica.SerializeToString())
    delta = Delta(header=DeltaHeader(samples_trained=64, gradient_norm=0.0), chunk_count=1)
    traffic.producer.send("ranker.deltas.v1", delta.SerializeToString(), partition=0)
    traffic.producer.send("exposures.v1", b"\xff rubbish", b"u", partition=0)
    traffic.producer.flush()
    expected = {"degraded", "orphans", "zero_gradient", "watermark_old"}

    def is_whole(windows: list[QualityWindow]) -> bool:
        acts, asked = total(windows, "feedback", kind="mesh"), total(windows, "requests", kind="recommend")
        return acts == 27 and asked == 50 and expected <= alarms(windows)

    found = windows_until(fresh_broker.bootstrap, is_whole)
    assert total(found, "requests", variant="default", kind="recommend", model_version="1") == 40
    assert total(found, "requests", variant="canary", model_version="2") == 10
    assert total(found, "feedback", variant="default", kind="recommend") == 20
    assert {w.metrics["positive_rate"] for w in found if w.variant == "default" and "positive_rate" in w.metrics} == {1.0}
    assert {w.metrics["positive_rate"] for w in found if w.variant == "canary" and "positive_rate" in w.metrics} == {0.0}
    (answers,) = [window for window in found if window.kind == "generate" and window.metrics["requests"]]
    assert (answers.metrics["ttft_p50_ms"], answers.model_version) == (100.0, "base")
    assert {window.metrics["thumbs_up_rate"] for window in found if "thumbs_up_rate" in window.metrics} == {0.5}
    assert all(window.window_end_ms - window.window_start_ms == WINDOW_MS and window.window_end_ms % WINDOW_MS == 0 for window in found)
    text = process.scrape()
    assert 'tunemesh_quality_watermark_age_ms{replica="host-1"}' in text
    assert 'tunemesh_quality_alarms_total{alarm="zero_gradient"} 1.0' in text
    assert process.stop() == 0


def test_drift_is_seen_against_a_reference_that_outlives_the_process(fresh_broker, quality, traffic, tmp_path: Path) -> None:
    first = quality()
    wait_for_a_new_window()
    for _ in range(300):
        traffic.expose(num_items=5)
    traffic.producer.flush()
    deadline = time.monotonic() + seconds(60)
    while not (tmp_path / "reference.json").exists():
        assert time.monotonic() < deadline, first.log.read_text()
        time.sleep(0.1)
    assert first.stop() == 0
    second = quality()
    second.wait_for("1 references taken")
    wait_for_a_new_window()
    for _ in range(300):
        traffic.expose(num_items=8)  # other items: their made-up features have other values
    traffic.producer.flush()
    found = windows_until(fresh_broker.bootstrap, lambda windows: "drift" in alarms(windows))
    (alarm,) = [alarm for window in found for alarm in window.alarms if alarm.name == "drift"][:1]
    assert alarm.value > alarm.limit >= 0.25 and "item." in alarm.detail


def test_feedback_after_a_restart_finds_the_variant_of_requests_from_before(fresh_broker, quality, traffic) -> None:
    shown = traffic.expose(variant="canary")
    traffic.producer.flush()
    time.sleep(0.1)
    quality()
    traffic.answer(shown)
    traffic.producer.flush()
    found = windows_until(fresh_broker.bootstrap, lambda windows: total(windows, "feedback", kind="mesh") == 1)
    assert total(found, "feedback", variant="canary") == 1
    assert total(found, "requests", variant="canary") == 0


def test_a_broker_that_comes_back_is_read_again_and_metrics_are_served_meanwhile(fresh_broker, quality) -> None:
    fresh_broker.kill()
    process = quality(wait=False)
    process.wait_for("trying again")
    assert "tunemesh_quality_windows_total" in process.scrape()
    fresh_broker.restart_with_topics(mesh_topic_partitions(user_partitions=PARTITIONS), clients=[process.pid])
    process.wait_for("reading from")
    with Traffic(fresh_broker.bootstrap) as again:
        again.expose()
        again.producer.flush()
        windows_until(fresh_broker.bootstrap, lambda windows: total(windows, "requests", kind="recommend") == 1)
    assert process.stop() == 0


def test_a_wrong_start_is_one_line_and_exit_code_2(fresh_broker, quality, tmp_path: Path) -> None:
    (tmp_path / "reference.json").write_text("[]")
    process = quality(wait=False)
    assert process.wait() == 2
    assert "TUNEMESH_QUALITY_REFERENCE_PATH" in process.log.read_text() and "Traceback" not in process.log.read_text()
