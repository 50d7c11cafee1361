"""The operator's commands, as typed, on the running ranking half; nothing but the run folder says where its parts are.

Rollbacks of adapters, and why of an answer: see test_language_loop.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from tunemesh.events.v1.feedback_pb2 import Feedback
from tunemesh.events.v1.quality_pb2 import QualityWindow
from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2 as collector_pb
from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2_grpc as collector_grpc
from tunemesh.router.v1 import router_service_pb2 as router_pb
from tunemesh.router.v1 import router_service_pb2_grpc as router_grpc
from tunemesh.trainer.v1 import trainer_service_pb2 as trainer_pb
from tunemesh.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc

from loadtests.bare_mesh import RANKING, bare_mesh
from services.common.platform.ids import uuid7
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.mesh.runner.mesh import Mesh
from tests.e2e.commands import CommandFailed, tunemesh

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(400)]

SETTINGS = {
    "TUNEMESH_TRAINER_CHECKPOINT_INTERVAL_MS": "1000",
    "TUNEMESH_TRAINER_KEEP_CHECKPOINTS": "100",
    "TUNEMESH_QUALITY_WINDOW_MS": "2000",
}
FILMS = [str(number) for number in range(1, 41)]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory) -> Iterator[Mesh]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        with bare_mesh(tmp_path_factory.mktemp("operate"), services=(*RANKING, "quality"), durable_broker=False) as started:
            yield started


class Users:
    """Some traffic: recommendations, and a rating of the first film of each."""

    def __init__(self, mesh: Mesh) -> None:
        channels = [grpc.insecure_channel(mesh.address(name)) for name in ("router", "feedback_collector", "trainer")]
        self.router, self.collector = router_grpc.RouterServiceStub(channels[0]), collector_grpc.FeedbackCollectorServiceStub(channels[1])
        self.trainer = trainer_grpc.TrainerServiceStub(channels[2])

    def rate(self, number: int) -> list[router_pb.RecommendResponse]:
        answers = []
        for user in range(number):
            request = router_pb.RecommendRequest(user_id=f"user-{user}", candidates=FILMS)
            answers.append(self.router.Recommend(request, timeout=60))
            self.send(answers[-1].request_id, f"user-{user}", answers[-1].items[0].item_id)
        return answers

    def send(self, request_id: str, user_id: str, item_id: str) -> None:
        feedback = Feedback(feedback_id=uuid7(), request_id=request_id, user_id=user_id, item_id=item_id, kind="rating", value=5.0)
        self.collector.SubmitFeedback(collector_pb.SubmitFeedbackRequest(feedback=[feedback]), timeout=60)

    def status(self) -> trainer_pb.GetStatusResponse:
        return self.trainer.GetStatus(trainer_pb.GetStatusRequest(), timeout=60)


@pytest.fixture(scope="module")
def users(mesh: Mesh) -> Users:
    return Users(mesh)


def eventually(ask: Callable[[], Any], enough: Callable[[Any], bool], *, timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if enough(found := ask()):
                return found
        except CommandFailed:  # what it asks for may come yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
            continue
        assert time.monotonic() < deadline, found
        time.sleep(0.5)


def test_why_explains_a_recommendation_down_to_the_learned_sample(mesh: Mesh, users: Users) -> None:
    answers = eventually(lambda: users.rate(5), lambda found: any(not answer.degraded_reason for answer in found))
    answer = next(answer for answer in answers if not answer.degraded_reason)
    best = answer.items[0]

    def is_learned(report: Any) -> bool:
        return any(sample["is_learned"] for sample in report["items"][0]["samples"])

    report = eventually(lambda: tunemesh(mesh.folder.path, "why", answer.request_id), is_learned)
    row = report["items"][0]
    assert (row["item_id"], row["score"], row["channel"]) == (best.item_id, pytest.approx(best.score), ",".join(best.reasons))
    assert row["features"] and report["user_features"] and report["features_missing"] == ""
    assert (report["model_version"], report["variant"]) == (answer.model_version, answer.variant)
    assert [each["item_id"] for each in report["feedback"]] == [best.item_id]


def test_learning_is_paused_and_resumed(mesh: Mesh, users: Users) -> None:
    assert tunemesh(mesh.folder.path, "pause", "learning")["ranker"]["is_paused"]
    assert users.status().paused
    assert not tunemesh(mesh.folder.path, "resume", "learning")["ranker"]["is_paused"]
    assert not users.status().paused


def test_the_ranker_goes_back_and_learns_again(mesh: Mesh, users: Users) -> None:
    before = eventually(users.status, lambda status: bool(status.last_checkpoint))
    time.sleep(2.0)
    moment_ms = time.time_ns() // 1_000_000
    users.rate(20)
    eventually(users.status, lambda status: status.samples_trained >= before.samples_trained + 20)
    back = tunemesh(mesh.folder.path, "rollback", "ranker", "--to", f"@{moment_ms}")
    assert back["epoch"] == before.epoch + 1 and sum(back["skipped"]) > 0 and len(back["replicas"]) == 1
    again = tunemesh(mesh.folder.path, "retrain", "--from", f"@{moment_ms}")
    assert again["epoch"] == back["epoch"] + 1 and sum(again["skipped"]) == 0
    users.rate(5)
    eventually(users.status, lambda status: status.epoch == again["epoch"] and not status.publishing_refused and status.seq > 0)


def test_a_dead_letter_is_put_back_once_and_comes_back_with_its_mark(mesh: Mesh, users: Users) -> None:
    def orphans() -> Any:
        rows = tunemesh(mesh.folder.path, "dlq", "list", "--reason", "orphan")
        return {row["topic"]: row for row in rows}.get("feedback.v1", {"letters": 0, "redriven": 0, "came_back": 0})

    # A rating of an earlier test may be an orphan as well, when the machine stood still between its exposure and the log.
    before = orphans()["letters"]
    users.send(uuid7(), "user-0", FILMS[0])
    eventually(orphans, lambda row: row["letters"] > before)
    redriven = tunemesh(mesh.folder.path, "dlq", "redrive", "feedback.v1", "--reason", "orphan")["redriven"]
    assert redriven >= before + 1
    eventually(orphans, lambda row: row["redriven"] == redriven and row["came_back"] >= 1)
    assert tunemesh(mesh.folder.path, "dlq", "redrive", "feedback.v1", "--reason", "orphan")["redriven"] == 0


def test_quality_tells_of_all_that(mesh: Mesh) -> None:
    kafka = mesh.environment("router")["KAFKA_BOOTSTRAP_SERVERS"]

    def windows() -> list[QualityWindow]:
        consumer = assigned_consumer(kafka, "quality.v1", start="beginning", client_id="test")
        try:
            return [QualityWindow.FromString(record.value) for record in drain_to_end(consumer)]
        finally:
            consumer.close()

    def tells_all(found: list[QualityWindow]) -> bool:
        recommend = [window for window in found if window.kind == "recommend" and window.metrics["requests"]]
        of_the_mesh = [window for window in found if window.kind == "mesh"]
        return (
            sum(window.metrics["requests"] for window in recommend) >= 30
            and any(window.metrics["mean_score"] > 0 for window in recommend)
            and any(window.metrics["orphans"] for window in of_the_mesh)
            and any(window.metrics["gradient_norm"] > 0 for window in of_the_mesh)
            and of_the_mesh[-1].metrics["watermark_age_ms"] < 30_000
        )

    eventually(windows, tells_all)
    with urllib.request.urlopen(f"http://{mesh.address('quality', 50065)}/metrics", timeout=30) as answer:
        assert "tunemesh_quality_watermark_age_ms" in answer.read().decode()
