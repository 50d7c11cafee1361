"""The language loop once, on the mesh in small: question, correction, example, tune, gate, hot load, changed answer, rollback.

The model is a tiny one that was made for it (tests/tiny_loop.py); what the packaged model learns: see test_demo_in_small.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from tunemesh.trainer.v1.tuner_service_pb2 import GetTuneRequest, GetTuneResponse, GetTunerStatusRequest, StartTuneRequest, TaskStatus

from tests.e2e.commands import CommandFailed, tunemesh
from tests.e2e.small_mesh import SmallMesh
from tests.e2e.traces import edges
from tests.e2e.users import Users
from tests.limits import seconds
from tests.tiny_loop import ADAPTER, DEMONSTRATIONS, HELD_OUT, MIN_RIGHT, TASK
from tests.tiny_model import NAME
from tests.waiting import eventually
from tunemesh_client import Answer

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(600)]

ENDED = ("live", "refused", "undecided", "failed")


@dataclass(frozen=True, slots=True)
class Taught:
    """The held-out questions before and after the corrections were sent and learned."""

    before: list[Answer]
    corrected: list[Answer]
    tune: GetTuneResponse
    after: list[Answer]


def ask_all(users: Users, questions: Iterable[str]) -> list[Answer]:
    """Ask several at once, as many people do; the model computes them together."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda question: users.ask(question, task=TASK), questions))


def ask_held_out(users: Users) -> list[Answer]:
    return ask_all(users, [asked.question for asked in HELD_OUT])


def share_right(answers: Sequence[Answer]) -> float:
    return sum(asked.is_right(answer.text) for asked, answer in zip(HELD_OUT, answers, strict=True)) / len(HELD_OUT)


@pytest.fixture(scope="module")
def taught(users: Users) -> Taught:
    before = ask_held_out(users)
    corrected = ask_all(users, [lesson.question for lesson in DEMONSTRATIONS])
    for answer, lesson in zip(corrected, DEMONSTRATIONS, strict=True):
        users.correct(answer, lesson.answer)

    def known() -> TaskStatus:
        return users.tuner.GetTunerStatus(GetTunerStatusRequest(), timeout=seconds(20)).tasks[TASK]

    eventually(known, lambda status: status.demonstrations >= len(corrected))
    started = users.tuner.StartTune(StartTuneRequest(task=TASK, actor="test"), timeout=seconds(20))

    def progress() -> GetTuneResponse:
        return users.tuner.GetTune(GetTuneRequest(tune_id=started.tune_id), timeout=seconds(20))

    tune = eventually(progress, lambda tune: tune.phase in ENDED, limit_s=240, every_s=0.3)
    assert tune.phase == "live", f"{tune.phase}: {'; '.join(tune.refusals) or tune.error}"
    eventually(lambda: users.ask("Hello", task=TASK).model_version, lambda version: version == tune.adapter)
    return Taught(before, corrected, tune, ask_held_out(users))


def test_questions_about_the_catalogue_are_answered_from_retrieved_passages(users: Users) -> None:
    answer = users.ask("Name the genres of Fargo.", source="catalog")
    assert answer.degraded_reason == "" and answer.text
    assert "Fargo" in answer.passages[0].title


def test_what_was_corrected_is_answered_by_the_adapter_in_words_that_were_never_shown(taught: Taught) -> None:
    assert taught.tune.adapter == ADAPTER.format(1)
    assert share_right(taught.before) == 0
    assert {answer.model_version for answer in taught.before} == {NAME}
    assert share_right(taught.after) >= MIN_RIGHT
    assert {answer.model_version for answer in taught.after} == {taught.tune.adapter}


def test_the_gate_compared_it_with_the_base_on_both_slices(taught: Taught) -> None:
    metrics = taught.tune.metrics
    assert metrics["task.base"] == 0 and metrics["task.candidate"] >= MIN_RIGHT
    assert metrics["context.candidate"] >= metrics["context.base"] > 0.0


def test_why_of_an_answer_shows_its_prompt_its_passages_and_what_it_taught(small: SmallMesh, users: Users, taught: Taught) -> None:
    question = "Name the genres of Fargo."
    answer = users.ask(question, source="catalog")
    asked = tunemesh_when_logged(small, answer)
    assert (asked["kind"], asked["question"], asked["answer"].strip()) == ("generation", question, answer.text)
    assert asked["passage_ids"] and any("Fargo" in message["content"] for message in asked["messages"])
    lesson = tunemesh(small.run_dir, "why", taught.corrected[0].request_id)
    assert [each["kind"] for each in lesson["feedback"]] == ["demonstration"]
    assert [each["kind"] for each in lesson["examples"]] == ["demonstration"]


def tunemesh_when_logged(small: SmallMesh, answer: Answer) -> Any:
    return eventually(lambda: tunemesh(small.run_dir, "why", answer.request_id), lambda _: True, not_yet=(CommandFailed,))


def test_one_command_rolls_an_adapter_back_and_another_forward(small: SmallMesh, users: Users, taught: Taught) -> None:
    back = tunemesh(small.run_dir, "rollback", f"llm/{TASK}")
    assert (back["from"], back["to"]) == (taught.tune.adapter, "base") and back["live_after_s"] >= 0
    assert share_right(ask_held_out(users)) == 0
    forward = tunemesh(small.run_dir, "rollback", f"llm/{TASK}", "--to", taught.tune.adapter)
    assert forward["to"] == taught.tune.adapter
    assert share_right(ask_held_out(users)) >= MIN_RIGHT


def test_one_trace_of_a_question_runs_through_retriever_prompt_assembler_and_model(small: SmallMesh, users: Users) -> None:
    users.ask("Name the genres of Fargo.", source="catalog")
    eventually(lambda: edges(small.spans()), lambda found: found >= {("router", name) for name in ("retriever", "prompt_assembler", "llm")})


def test_mlflow_mirrors_the_version_and_its_alias(mlflow_url: str, taught: Taught) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=mlflow_url)
    model = taught.tune.adapter.rpartition("--")[0]

    def live() -> Any:
        return client.get_model_version_by_alias(model, "production")

    version = eventually(live, lambda found: found.tags["tunemesh.adapter"] == taught.tune.adapter, not_yet=(mlflow.MlflowException,))
    run = client.get_run(version.run_id)
    assert run.data.metrics and run.data.params
