"""Tunes of the tiny model from their demonstrations to the gate's verdict: trained in a process, loaded by vLLM, judged by its answers.

Three adapters: one that the gate lets through, one tuned without replay, which forgets to read, and one tuned on shuffled answers, which
learns nothing that is asked. All by the limits that the tuner has by default. The same of the packaged model, through router and prompt
assembler: tests/integration/tuner/test_gate_on_measured_slices.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from tunemesh.common.v1.chat_pb2 import ChatMessage

from services.common.events.chat import Message, Passage
from services.common.language.adapter_name import AdapterName
from services.common.language.aliases import BASE_MODEL
from services.common.language.base_model import BaseModel
from services.common.platform.clock import wall_ms
from services.tuner.async_adapter_store import AsyncAdapterStore
from services.tuner.examples import Demonstration
from services.tuner.mirror import NoMirror
from services.tuner.neighbours import Live, Neighbours
from services.tuner.replay import ReplayExample
from services.tuner.server import recipe_of
from services.tuner.settings import TunerSettings
from services.tuner.training_process import TrainingProcess
from services.tuner.tune import Collected, Tune
from services.tuner.tune_status import TuneStatus
from tests import tiny_loop, tiny_model
from tests.integration.llm.running import Llm
from tests.limits import seconds

pytestmark = [pytest.mark.integration, pytest.mark.ml, pytest.mark.timeout(400)]


class Prompts:
    """The prompt assembler's template, without its service."""

    async def assemble(self, task: str, question: str, passages: Sequence[Passage]) -> tuple[Message, ...]:
        return tiny_model.messages_of(question, passages)


class Served:
    """Adapters and answers of the running llm, without the router."""

    def __init__(self, llm: Llm) -> None:
        self._llm = llm

    async def load(self, name: AdapterName) -> None:
        await asyncio.to_thread(self._llm.load, str(name))

    async def unload(self, name: AdapterName) -> None:
        await asyncio.to_thread(self._llm.unload, str(name))

    async def answer(self, task: str, question: str, context: Sequence[Passage], adapter: str) -> str:
        messages = [ChatMessage(role=one.role, content=one.content) for one in tiny_model.messages_of(question, context)]
        name = "" if adapter == BASE_MODEL else adapter
        stream = partial(self._llm.chat, messages, adapter=name, max_tokens=tiny_loop.TUNING["max_answer_tokens"])
        responses = await asyncio.to_thread(lambda: list(stream()))
        assert responses[0].model_version == (name or tiny_model.NAME)
        return "".join(response.text for response in responses)

    async def wait_live(self, task: str, name: AdapterName) -> bool:
        return True


class Replay:
    """What tests/tiny_loop.py rehearses."""

    async def given(self) -> Sequence[ReplayExample]:
        return tiny_loop.replay_examples()

    async def items(self) -> Sequence[object]:
        raise AssertionError("the replay examples are given")


class Alias:
    """control.v1 in which one alias was never set."""

    def __init__(self) -> None:
        self.target = BASE_MODEL

    async def live(self, task: str) -> Live:
        return Live(self.target, 0)

    async def set_live(self, task: str, name: AdapterName, expected_version: int) -> None:
        assert (self.target, expected_version) == (BASE_MODEL, 0)
        self.target = str(name)


class Bench:
    """Tunes with the tuner's own parts."""

    def __init__(self, llm: Llm, folder: Path) -> None:
        self.llm, self.alias, self.store = llm, Alias(), AsyncAdapterStore(llm.store)
        self._training = TrainingProcess(folder / "work", keep=3, timeout_s=seconds(300))

    async def tune(self, lessons: Sequence[tiny_loop.Lesson], **settings: object) -> TuneStatus:
        """Run one tune to its end."""
        recipe = recipe_of(TunerSettings(concurrency=2, **{**tiny_loop.TUNING, **settings}))
        name = await self.store.next_name(tiny_model.NAME, tiny_loop.TASK)
        status = TuneStatus(tune_id="t", task=tiny_loop.TASK, adapter=str(name))
        demonstrations = tuple(
            Demonstration(
                example_id=f"{number:03}",
                question=lesson.question,
                messages=tiny_model.messages_of(lesson.question),
                answer=lesson.answer,
                created_at_ms=1,
            )
            for number, lesson in enumerate(lessons)
        )
        collected = Collected(task=tiny_loop.TASK, demonstrations=demonstrations, evaluation=tiny_loop.evaluation(), actor="test")
        neighbours = Neighbours(
            tuning=self._training,
            store=self.store,
            replay=Replay(),
            prompts=Prompts(),
            serving=Served(self.llm),
            control=self.alias,
            mirror=NoMirror(),
            now_ms=wall_ms,
        )
        base = BaseModel(name=tiny_model.NAME, folder=str(tiny_model.tiny_model()))
        await Tune(base, name, collected, recipe, neighbours, status).run()
        return status


@pytest.fixture
def bench(llm, tmp_path) -> Bench:
    return Bench(llm, tmp_path)


async def test_an_adapter_that_learned_its_task_and_still_reads_goes_live(bench):
    status = await bench.tune(tiny_loop.DEMONSTRATIONS)
    assert (status.phase, status.refusals, status.error) == ("live", [], "")
    assert bench.alias.target == status.adapter
    assert status.metrics["task.base"] == 0.0
    assert status.metrics["task.candidate"] >= tiny_loop.MIN_RIGHT
    assert status.metrics["context.base"] == status.metrics["context.candidate"] == 1.0
    verdict = bench.llm.store.verdict(status.adapter)
    assert verdict is not None and verdict.accepted and verdict.compared_with == BASE_MODEL
    assert bench.llm.states() == {status.adapter: "WARM"}
    bench.llm.unload(status.adapter)


async def test_an_adapter_tuned_without_replay_is_refused_because_it_no_longer_reads(bench):
    status = await bench.tune(tiny_loop.DEMONSTRATIONS, replay_share=0.0)
    assert (status.phase, bench.alias.target, bench.llm.states()) == ("refused", BASE_MODEL, {})
    assert status.metrics["task.candidate"] >= tiny_loop.MIN_RIGHT, "it must fail for want of reading, not of learning"
    # How much it forgets depends on the processor: sums in another order, and half or a third of the contexts are read wrong.
    assert status.metrics["context.candidate"] < 0.8 < status.metrics["context.base"]
    assert any(sentence.startswith("answers from given context became worse than the base's") for sentence in status.refusals)
    assert any("(replay), below the least share of 0.20" in sentence for sentence in status.refusals)
    verdict = bench.llm.store.verdict(status.adapter)
    assert verdict is not None
    assert (verdict.accepted, list(verdict.refusals)) == (False, status.refusals)


async def test_an_adapter_tuned_on_shuffled_answers_is_refused_because_it_learned_nothing(bench):
    status = await bench.tune(tiny_loop.shuffled())
    assert (status.phase, bench.alias.target, bench.llm.states()) == ("refused", BASE_MODEL, {})
    assert any(sentence.startswith("the task slice is answered right in") for sentence in status.refusals)
    assert not any("(replay)" in sentence for sentence in status.refusals)
