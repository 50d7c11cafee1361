"""The operator's commands, as typed, on the mesh in small; nothing but the run folder says where its parts are.

Rollbacks of adapters, and why of an answer: see test_language_loop.
"""

from __future__ import annotations

import time
import urllib.request
from typing import Any

import pytest
from tunemesh.events.v1.quality_pb2 import QualityWindow
from tunemesh.trainer.v1.trainer_service_pb2 import WriteCheckpointRequest

from loadtests.demo.accounting import read_all
from services.common.events.topics import QUALITY
from services.common.platform.ids import uuid7
from tests.e2e.commands import CommandFailed, tunemesh
from tests.e2e.small_mesh import FILMS, SmallMesh
from tests.e2e.users import Users
from tests.limits import seconds
from tests.waiting import eventually
from tunemesh_client import Recommendation

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(400)]


def rate(users: Users, number: int) -> list[Recommendation]:
    """Some traffic: recommendations, and a rating of the first film of each."""
    answers = []
    for user in range(number):
        answers.append(users.recommend(f"user-{user}", FILMS))
        users.rate(answers[-1].request_id, f"user-{user}", answers[-1].items[0].item_id)
    return answers


def test_why_explains_a_recommendation_down_to_the_learned_sample(small: SmallMesh, users: Users) -> None:
    answer = rate(users, 3)[-1]
    assert answer.degraded_reason == ""
    best = answer.items[0]

    def is_learned(report: Any) -> bool:
        return any(sample["is_learned"] for sample in report["items"][0]["samples"])

    report = eventually(lambda: tunemesh(small.run_dir, "why", answer.request_id), is_learned, not_yet=(CommandFailed,))
    row = report["items"][0]
    assert (row["item_id"], row["score"], row["channel"]) == (best.item_id, pytest.approx(best.score), ",".join(best.reasons))
    assert row["features"] and report["user_features"] and report["features_missing"] == ""
    assert (report["model_version"], report["variant"]) == (answer.model_version, answer.variant)
    assert [each["item_id"] for each in report["feedback"]] == [best.item_id]


def test_learning_is_paused_and_resumed(small: SmallMesh, users: Users) -> None:
    assert tunemesh(small.run_dir, "pause", "learning")["ranker"]["is_paused"]
    assert users.status().paused
    assert not tunemesh(small.run_dir, "resume", "learning")["ranker"]["is_paused"]
    assert not users.status().paused


def test_the_ranker_goes_back_and_learns_again(small: SmallMesh, users: Users) -> None:
    users.trainer.WriteCheckpoint(WriteCheckpointRequest(), timeout=seconds(30))
    before = users.status()
    moment_ms = time.time_ns() // 1_000_000
    rate(users, 20)
    eventually(users.status, lambda status: status.samples_trained >= before.samples_trained + 20)
    back = tunemesh(small.run_dir, "rollback", "ranker", "--to", f"@{moment_ms}")
    assert back["epoch"] == before.epoch + 1 and sum(back["skipped"]) > 0 and len(back["replicas"]) == 1
    again = tunemesh(small.run_dir, "retrain", "--from", f"@{moment_ms}")
    assert again["epoch"] == back["epoch"] + 1 and sum(again["skipped"]) == 0
    rate(users, 5)
    eventually(users.status, lambda status: status.epoch == again["epoch"] and not status.publishing_refused and status.seq > 0)


def test_a_dead_letter_is_put_back_once_and_comes_back_with_its_mark(small: SmallMesh, users: Users) -> None:
    def orphans() -> Any:
        rows = tunemesh(small.run_dir, "dlq", "list", "--reason", "orphan")
        return {row["topic"]: row for row in rows}.get("feedback.v1", {"letters": 0, "redriven": 0, "came_back": 0})

    # A rating of an earlier test may be an orphan as well, when the machine stood still between its exposure and the log.
    before = orphans()["letters"]
    users.rate(uuid7(), "user-0", FILMS[0])
    eventually(orphans, lambda row: row["letters"] > before)
    redriven = tunemesh(small.run_dir, "dlq", "redrive", "feedback.v1", "--reason", "orphan")["redriven"]
    assert redriven >= before + 1
    eventually(orphans, lambda row: row["redriven"] == redriven and row["came_back"] >= 1)
    assert tunemesh(small.run_dir, "dlq", "redrive", "feedback.v1", "--reason", "orphan")["redriven"] == 0


def test_quality_tells_of_the_traffic(small: SmallMesh, users: Users) -> None:
    rate(users, 30)
    users.rate(uuid7(), "user-0", FILMS[0])

    def windows() -> list[QualityWindow]:
        return [QualityWindow.FromString(value) for value in read_all(small.kafka, QUALITY.name)]

    def tells_all(found: list[QualityWindow]) -> bool:
        recommend = [window for window in found if window.kind == "recommend" and window.metrics["requests"]]
        of_the_mesh = [window for window in found if window.kind == "mesh"]
        return (
            sum(window.metrics["requests"] for window in recommend) >= 30
            and any(window.metrics["mean_score"] > 0 for window in recommend)
            and any(window.metrics["orphans"] for window in of_the_mesh)
            and any(window.metrics["gradient_norm"] > 0 for window in of_the_mesh)
            and 0 <= of_the_mesh[-1].metrics["watermark_age_ms"] < 1000 * seconds(30)
        )

    eventually(windows, tells_all)
    with urllib.request.urlopen(f"http://{small.mesh.address('quality', 50065)}/metrics", timeout=seconds(30)) as answer:
        assert "tunemesh_quality_watermark_age_ms" in answer.read().decode()
