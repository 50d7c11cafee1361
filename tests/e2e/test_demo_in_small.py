"""`make demo KEEP=1` on fewer events, both parts on one mesh: results, accounting, and the whole tune of the packaged model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.commands import tunemesh
from tests.e2e.demo_run import DemoRun, learned_once_and_for_all
from tests.e2e.traces import edges
from tests.waiting import eventually

pytestmark = [pytest.mark.deep, pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(1600)]

NUM_EVENTS = 900
OPTIONS = ("--base-events", "6000", "--base-epochs", "1", "--events", str(NUM_EVENTS), "--rate", "40", "--keep")

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Demo:
    """A demo that has ended well, and whose mesh still runs."""

    run: DemoRun
    report: Report


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with DemoRun(tmp_path_factory.mktemp("demo"), *OPTIONS) as run:
        yield Demo(run, run.report(limit_s=1500))


@pytest.fixture(scope="module")
def llm(demo: Demo) -> Report:
    return demo.report["llm"]


def test_every_event_is_replayed_and_learned_once(demo: Demo) -> None:
    assert demo.report["events_replayed"] >= NUM_EVENTS
    learned_once_and_for_all(demo.report)


def test_the_report_has_every_key_and_learning_beats_the_frozen_copy(demo: Demo) -> None:
    report = demo.report
    assert set(report["like_auc"]) == {"live", "frozen", "means"}
    assert set(report["interact_ndcg10"]) == {"live", "frozen", "popularity"}
    for metric in ("like_auc", "interact_ndcg10"):
        for opponent in ("vs_frozen", "vs_counters"):
            assert set(report["gain"][metric][opponent]) == {"mean", "low", "high"}
    assert report["gain"]["interact_ndcg10"]["vs_frozen"]["low"] > 0
    assert {"prepare", "base", "start", "load", "replay", "drain", "report"} <= set(report["phases_s"])


def test_open_recommendations_recall_and_leave_out_what_was_seen(demo: Demo) -> None:
    opened = demo.report["open_recommendations"]
    assert opened["answers"] >= 10
    assert opened["items"] == 10 * opened["answers"]
    assert opened["already_seen"] == 0
    assert len(opened["reasons"]) >= 3


def test_both_halves_are_traced(demo: Demo) -> None:
    called = {("router", name) for name in ("recommender", "llm", "retriever", "prompt_assembler")}
    assert edges(demo.run.spans()) >= called | {("recommender", "triton")}


def test_answers_about_the_catalogue_stream_from_retrieved_passages(llm: Report) -> None:
    assert llm["failed_rpcs"] == 0
    for asked in llm["grounded"]:
        assert asked["answer"] and asked["from"] and asked["degraded_reason"] == ""
    assert any("Fargo" in title for title in llm["grounded"][0]["from"])


def test_after_the_tune_the_adapter_answers_them(llm: Report) -> None:
    for asked in llm["grounded_after_tune"]:
        assert asked["answer"] and asked["from"] and asked["degraded_reason"] == ""
        assert asked["model_version"] == llm["tune"]["adapter"]


def test_held_out_paraphrases_are_learned_from_the_demonstrations(llm: Report) -> None:
    assert llm["before"]["held_out"] <= 0.2
    assert llm["after"]["held_out"] >= 0.8
    assert llm["after"]["model_version"] == llm["tune"]["adapter"]


def test_answers_from_given_context_are_no_worse_than_before(llm: Report) -> None:
    metrics = llm["tune"]["metrics"]
    assert metrics["context.candidate"] >= metrics["context.base"]


def test_one_command_rolls_the_adapter_back_and_another_forward(demo: Demo, llm: Report) -> None:
    adapter = llm["tune"]["adapter"]
    assert tunemesh(demo.run.run_dir, "rollback", "llm/helpdesk")["to"] == "base"
    assert tunemesh(demo.run.run_dir, "rollback", "llm/helpdesk", "--to", adapter)["to"] == adapter


def test_mlflow_of_the_mesh_mirrors_the_version_and_its_alias(demo: Demo, llm: Report) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"http://{demo.run.address('mlflow')}")
    adapter = llm["tune"]["adapter"]
    version = eventually(
        lambda: client.get_model_version_by_alias(adapter.rpartition("--")[0], "production"),
        lambda found: found.tags["tunemesh.adapter"] == adapter,
        not_yet=(mlflow.MlflowException,),
    )
    run = client.get_run(version.run_id)
    assert run.data.metrics and run.data.params
    assert llm["tune"]["mlflow_run_id"] in ("", version.run_id)  # nothing when MLflow answered too late
