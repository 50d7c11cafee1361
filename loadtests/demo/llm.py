"""The demo's second part: the language model answers from the catalogue, is taught by demonstrations, and is rolled back.

Plays three roles: a product backend that asks (router), a person who corrects answers (feedback collector), and an operator who moves an
alias (trainer). Everything between is the mesh's own doing. Knows nothing of how a tune works.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
from rich.console import Console
from tunemesh.retriever.v1 import retriever_service_pb2, retriever_service_pb2_grpc
from tunemesh.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc, tuner_service_pb2, tuner_service_pb2_grpc

from loadtests.demo import base, helpdesk
from loadtests.demo.answers import Answer, AnswerClient, Question
from loadtests.demo.catalogue import write_catalogue
from loadtests.demo.client import MeshClient
from loadtests.demo.phases import Phases
from loadtests.demo.progress import Progress, Snapshot
from services.common.language.aliases import llm_alias
from services.common.platform.errors import ConfigurationError
from services.common.platform.grpc_client import open_channel
from services.mesh.runner.mesh import Mesh
from tunemesh_client import Feedback, TunemeshError

SERVICES = ("llm", "retriever", "prompt_assembler", "router", "feedback_collector", "curator", "trainer", "tuner", "mlflow", "quality")
"""What this part needs of the mesh; what they depend on comes with them."""

# The demo says itself when the tune begins, so that it can show what the model answered before.
MESH_ENV = {
    "TUNEMESH_TUNER_AUTO": "false",
    "TUNEMESH_TUNER_JUDGE_CONCURRENCY": "8",  # one at a time, hundreds of answers take ten minutes; this verdict is clear either way
}

# For the eye; how many such questions are answered right, before and after, the gate measures on the evaluation's context slice.
ASKED = (
    "Name the genres of Fargo.",
    "Which year is Casablanca from?",
    "Under which genres is Star Trek: First Contact listed?",
)

_CONCURRENCY = 8
_READY_LIMIT_S = 240.0
_TUNE_LIMIT_S = 900.0
_LIVE_LIMIT_S = 30.0
_ENDED = ("live", "refused", "undecided", "failed")

T = TypeVar("T")


def write_evaluations(data: base.Data, folder: Path) -> Path:
    """Write what the tuner judges help-desk tunes by, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    helpdesk.write_evaluation(folder / f"{helpdesk.TASK}.yaml", data.films)
    return folder


class LlmPart:
    """Asks, teaches, measures and rolls back; needs the language half of the mesh running."""

    def __init__(self, options: argparse.Namespace, data: base.Data, mesh: Mesh, phases: Phases, console: Console) -> None:
        """Take the command line's options, the data and the running mesh."""
        self._options, self._data, self._mesh, self._phases, self._console = options, data, mesh, phases, console
        self._desk = helpdesk.load()
        self._kafka = mesh.environment("router")["KAFKA_BOOTSTRAP_SERVERS"]

    async def run(self) -> dict[str, Any]:
        """Run all phases and return the language model's part of the report.

        Raises:
            ConfigurationError: the mesh did not become ready.
            RuntimeError: the tune was refused or failed, or an alias did not take effect in time; says why.
        """
        addresses = {name: self._mesh.address(name) for name in ("router", "feedback_collector", "trainer", "tuner", "retriever")}
        client = MeshClient(router=addresses["router"], collector=addresses["feedback_collector"], kafka=self._kafka)
        answers = AnswerClient(addresses["router"])
        channels = [open_channel(addresses[name]) for name in ("trainer", "tuner", "retriever")]
        self._trainer = trainer_service_pb2_grpc.TrainerServiceStub(channels[0])  # type: ignore[no-untyped-call] # generated
        self._tuner = tuner_service_pb2_grpc.TunerServiceStub(channels[1])  # type: ignore[no-untyped-call] # generated
        self._retriever = retriever_service_pb2_grpc.RetrieverServiceStub(channels[2])  # type: ignore[no-untyped-call] # generated
        try:
            return await self._run(client, answers)
        finally:
            for channel in channels:
                await channel.close()
            await answers.close()
            await client.stop()

    async def _run(self, client: MeshClient, answers: AnswerClient) -> dict[str, Any]:
        if self._options.part == "llm":
            await write_catalogue(self._kafka, self._data.films.values())
        with self._phases("ready llm", "the model serves, the catalogue is indexed"):
            await self._wait_ready(answers)
        with self._phases("ask", "the base model, about the catalogue"):
            grounded = await self._ask_about_catalogue(answers, task="answer")
        with self._phases("before", "held-out paraphrases of what the help desk is about to teach"):
            before = await self._measure(answers)
        with self._phases("teach", f"{len(self._desk.demonstrations)} demonstrations as feedback"):
            taught_s, taught_request_id = await self._teach(client, answers)
        with self._phases("tune", "LoRA, evaluation, gate, hot load"):
            tune = await self._tune()
        with self._phases("after", "the same questions again"):
            after = await self._measure(answers)
        with self._phases("ask again", "the tuned model, about the catalogue: the replay has taught it to read"):
            again = await self._ask_about_catalogue(answers, task=helpdesk.TASK)
        with self._phases("rollback", "one step, and forward again"):
            rollback_s = await self._move_back(answers, tune.adapter)
        return {
            "grounded": grounded,
            "grounded_after_tune": again,
            "demonstrations": len(self._desk.demonstrations),
            "feedback_to_example_s": taught_s,
            "taught_request_id": taught_request_id,
            "before": before,
            "after": after,
            "examples": self._side_by_side(before, after),
            "tune": {"adapter": tune.adapter, "phase": tune.phase, "metrics": dict(tune.metrics), "mlflow_run_id": tune.mlflow_run_id},
            "rollback_s": rollback_s,
            "failed_rpcs": answers.failed + client.counts.failed,
            "retried_rpcs": answers.retried + client.counts.retried,
            "ttft_ms": answers.ttft_percentiles(),
        }

    async def _wait_ready(self, answers: AnswerClient) -> None:
        async def indexed() -> bool:
            status = await self._retriever.GetIndexStatus(retriever_service_pb2.GetIndexStatusRequest(), timeout=5.0)
            return int(status.passages_by_source.get("catalog", 0)) >= len(self._data.films)

        async def answering() -> bool:
            return not (await answers.try_once(_question("Hello", task="answer", retrieve=True))).degraded_reason

        for what, condition in (("the catalogue is not indexed", indexed), ("the model does not answer whole", answering)):
            if not await _until(condition, _READY_LIMIT_S):
                raise ConfigurationError(f"{what} after {_READY_LIMIT_S:.0f} s (logs: {self._mesh.folder.logs})")

    async def _ask_about_catalogue(self, answers: AnswerClient, *, task: str) -> list[dict[str, Any]]:
        return [_as_dict(question, await self._ask_aloud(answers, question, task=task)) for question in ASKED]

    async def _ask_aloud(self, answers: AnswerClient, question: str, *, task: str) -> Answer:
        """Stream an answer onto the terminal."""
        self._console.print(f"  [cyan]? {question}[/cyan]", highlight=False)
        self._console.print("  ", end="")
        request = _question(question, task=task, retrieve=True, source="catalog")
        answer = await answers.ask(
            request, on_text=lambda text: self._console.print(text.replace("\n", " "), end="", highlight=False, markup=False)
        )
        self._console.print(
            f"\n    [dim]from {', '.join(answer.titles[:3])} · {answer.model_version} · first text after {answer.ttft_ms:.0f} ms[/dim]",
            highlight=False,
        )
        return answer

    async def _measure(self, answers: AnswerClient) -> dict[str, Any]:
        """Ask the held-out paraphrases greedily through the live alias."""
        said = await self._ask_all(answers, [_question(asked.question, task=helpdesk.TASK) for asked in self._desk.held_out])
        right = [asked.is_right(answer.text) for asked, answer in zip(self._desk.held_out, said, strict=True)]
        self._console.print(f"  {sum(right)} of {len(right)} right, by {said[0].model_version}", highlight=False)
        rows = [
            {"question": asked.question, "answer": answer.text, "right": is_right}
            for asked, answer, is_right in zip(self._desk.held_out, said, right, strict=True)
        ]
        return {"model_version": said[0].model_version, "held_out": sum(right) / len(right), "questions": len(right), "answers": rows}

    async def _ask_all(self, answers: AnswerClient, questions: Sequence[Question]) -> list[Answer]:
        gate = asyncio.Semaphore(_CONCURRENCY)

        async def one(question: Question) -> Answer:
            async with gate:
                return await answers.ask(question)

        return list(await asyncio.gather(*(one(question) for question in questions)))

    async def _teach(self, client: MeshClient, answers: AnswerClient) -> tuple[float, str]:
        """Ask each question, send the answer as it should be; return how long the last one took to be an example, and a request id."""
        lessons = self._desk.demonstrations
        # Several teach: one user alone fills a part of a task's threshold only.
        editors = [_EDITORS[number % len(_EDITORS)] for number in range(len(lessons))]
        questions = [
            _question(lesson.question, task=helpdesk.TASK, max_tokens=8, user_id=editor)
            for lesson, editor in zip(lessons, editors, strict=True)
        ]
        asked = await self._ask_all(answers, questions)
        for lesson, editor, answer in zip(lessons, editors, asked, strict=True):
            feedback = Feedback(request_id=answer.request_id, user_id=editor, kind="demonstration", text=lesson.answer)
            if await client.submit_feedback(feedback) is None:
                raise RuntimeError(f"a demonstration was not accepted: {client.counts.last_error}")
        sent = time.monotonic()

        async def all_known() -> bool:
            status = await self._tuner.GetTunerStatus(tuner_service_pb2.GetTunerStatusRequest(), timeout=60.0)
            return helpdesk.TASK in status.tasks and status.tasks[helpdesk.TASK].demonstrations >= len(lessons)

        if not await _until(all_known, 60.0):
            raise RuntimeError(f"the tuner does not know all demonstrations after 60 s (logs: {self._mesh.folder.logs})")
        return round(time.monotonic() - sent, 2), asked[0].request_id

    async def _tune(self) -> tuner_service_pb2.GetTuneResponse:
        started = await self._tuner.StartTune(tuner_service_pb2.StartTuneRequest(task=helpdesk.TASK, actor="demo"), timeout=30.0)
        deadline = time.monotonic() + _TUNE_LIMIT_S
        with Progress("A tune") as progress:
            while True:
                asked = tuner_service_pb2.GetTuneRequest(tune_id=started.tune_id)
                tune: tuner_service_pb2.GetTuneResponse = await self._tuner.GetTune(asked, timeout=60.0)
                if tune.phase in _ENDED or time.monotonic() > deadline:
                    break
                loss = f"{tune.loss:.3f}" if tune.step else "-"
                progress.show(
                    Snapshot({"adapter": tune.adapter, "phase": tune.phase, "step": f"{tune.step} of {tune.num_steps}", "loss": loss})
                )
                await asyncio.sleep(1.0)
        if tune.phase != "live":
            why = "; ".join(tune.refusals) or tune.error or f"still {tune.phase} after {_TUNE_LIMIT_S:.0f} s"
            raise RuntimeError(f"the tune {tune.adapter} is {tune.phase}: {why} (logs: {self._mesh.folder.logs})")
        for name, value in sorted(tune.metrics.items()):
            self._console.print(f"  {name}: {value:.3f}", highlight=False)
        return tune

    async def _move_back(self, answers: AnswerClient, adapter: str) -> dict[str, float]:
        """Move the alias one step back and forward; return the seconds until an answer came from the right model."""
        alias = llm_alias(helpdesk.TASK)
        current = await self._trainer.GetAlias(trainer_service_pb2.GetAliasRequest(alias=alias), timeout=60.0)
        seconds = {}
        for name, target in (("back", current.previous_target or "base"), ("forward", adapter)):
            started = time.monotonic()
            current = await self._trainer.GetAlias(trainer_service_pb2.GetAliasRequest(alias=alias), timeout=60.0)
            moved = trainer_service_pb2.SetAliasRequest(alias=alias, target=target, expected_version=current.version, actor="demo")
            await self._trainer.SetAlias(moved, timeout=60.0)
            if not await _until(lambda target=target: self._answers_with(answers, target), _LIVE_LIMIT_S, every_s=0.1):  # type: ignore[misc]
                raise RuntimeError(f"{alias} points at {target}, and after {_LIVE_LIMIT_S:.0f} s the answers still come from another model")
            seconds[name] = round(time.monotonic() - started, 2)
            self._console.print(f"  {name} to {target}: live after {seconds[name]:.2f} s", highlight=False)
        return seconds

    async def _answers_with(self, answers: AnswerClient, target: str) -> bool:
        version = (await answers.try_once(_question("Hello", task=helpdesk.TASK, max_tokens=1))).model_version
        return version == target or (target == "base" and "--" not in version)

    def _side_by_side(self, before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {"question": b["question"], "before": b["answer"], "after": a["answer"], "right_after": a["right"]}
            for b, a in zip(before.pop("answers"), after.pop("answers"), strict=True)
        ]


_USER = "demo-user"
_EDITORS = ("demo-editor-1", "demo-editor-2", "demo-editor-3")


def _question(text: str, *, task: str, retrieve: bool = False, source: str = "", max_tokens: int = 48, user_id: str = _USER) -> Question:
    return Question(text=text, user_id=user_id, task=task, retrieve=retrieve, source=source, max_tokens=max_tokens)


async def _until(condition: Callable[[], Awaitable[bool]], limit_s: float, *, every_s: float = 0.5) -> bool:
    """Return whether the condition came true in time; a server that cannot be reached yet is waited for."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            if await condition():
                return True
        except TunemeshError as error:
            if not error.retry_helps:
                raise
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.FAILED_PRECONDITION):
                raise
        await asyncio.sleep(every_s)
    return False


def _as_dict(question: str, answer: Answer) -> dict[str, Any]:
    return {
        "question": question,
        "request_id": answer.request_id,
        "answer": answer.text,
        "model_version": answer.model_version,
        "from": answer.titles,
        "ttft_ms": round(answer.ttft_ms, 1),
        "degraded_reason": answer.degraded_reason,
    }
