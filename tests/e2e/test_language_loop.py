"""The language half, as `make demo` runs it: grounded answers, a tune from demonstrations, and a rollback."""

import time
from typing import Any

import pytest

from tests.e2e.commands import tunemesh

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(1600)]


@pytest.fixture(scope="module")
def llm(demo):
    return demo.report["llm"]


def test_answers_about_the_catalogue_stream_from_retrieved_passages(llm):
    for asked in llm["grounded"]:
        assert asked["answer"] and asked["from"] and asked["degraded_reason"] == ""
    assert any("Fargo" in title for title in llm["grounded"][0]["from"])


def test_after_the_tune_the_adapter_answers_them(llm):
    for asked in llm["grounded_after_tune"]:
        assert asked["answer"] and asked["from"] and asked["degraded_reason"] == ""
        assert asked["model_version"] == llm["tune"]["adapter"]


def test_no_call_of_the_language_half_fails(llm):
    assert llm["failed_rpcs"] == 0


def test_held_out_paraphrases_are_learned_from_the_demonstrations(llm):
    assert llm["before"]["held_out"] <= 0.2
    assert llm["after"]["held_out"] >= 0.8
    assert llm["after"]["model_version"] == llm["tune"]["adapter"]


def test_answers_from_given_context_are_no_worse_than_before(llm):
    metrics = llm["tune"]["metrics"]
    assert metrics["context.candidate"] >= metrics["context.base"]


def test_a_roll_back_is_live_within_five_seconds(llm):
    assert llm["rollback_s"]["back"] <= 5.0


def test_a_demonstration_is_an_example_within_seconds(llm):
    assert llm["feedback_to_example_s"] <= 15.0


def test_why_of_an_answer_shows_its_prompt_its_passages_and_what_it_taught(demo, llm):
    asked = tunemesh(demo.run_dir, "why", llm["grounded"][0]["request_id"])
    assert (asked["kind"], asked["question"], asked["answer"].strip()) == (
        "generation",
        llm["grounded"][0]["question"],
        llm["grounded"][0]["answer"],
    )
    assert asked["passage_ids"] and any("Fargo" in message["content"] for message in asked["messages"])
    taught = tunemesh(demo.run_dir, "why", llm["taught_request_id"])
    assert [each["kind"] for each in taught["feedback"]] == ["demonstration"]
    assert [each["kind"] for each in taught["examples"]] == ["demonstration"]


def test_one_command_rolls_an_adapter_back_and_another_forward(demo, llm):
    adapter = llm["tune"]["adapter"]
    back = tunemesh(demo.run_dir, "rollback", "llm/helpdesk")
    assert back["to"] == "base" and back["live_after_s"] <= 5.0
    forward = tunemesh(demo.run_dir, "rollback", "llm/helpdesk", "--to", adapter)
    assert forward["to"] == adapter


def test_mlflow_mirrors_the_version_and_its_alias(demo, llm):
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"http://{demo.address('mlflow')}")
    adapter = llm["tune"]["adapter"]

    def live() -> Any:
        try:
            return client.get_model_version_by_alias(adapter.rpartition("--")[0], "production")
        except mlflow.MlflowException:
            return None  # neither the model nor its alias is mirrored yet

    deadline = time.monotonic() + 60
    while (version := live()) is None or version.tags["tunemesh.adapter"] != adapter:
        assert time.monotonic() < deadline, version
        time.sleep(0.5)
    run = client.get_run(version.run_id)
    assert run.data.metrics and run.data.params
    assert llm["tune"]["mlflow_run_id"] in ("", version.run_id)  # nothing when MLflow answered too late
