"""Tunes and judgements of the tiny model with the tuner's own parts, on a running llm and without the router."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tunemesh.llm.v1.llm_admin_service_pb2 import ListAdaptersRequest, ScoreAnswerRequest

from services.common.events.chat import Message, Passage
from services.common.events.wire.chat import chat_messages
from services.common.language.adapter_manifest import AdapterVerdict
from services.common.language.adapter_name import AdapterName
from services.common.language.aliases import BASE_MODEL
from services.common.language.base_model import BaseModel
from services.common.language.evaluation import Evaluation, Question
from services.common.platform.clock import wall_ms
from services.tuner.async_adapter_store import AsyncAdapterStore
from services.tuner.examples import Demonstration
from services.tuner.mirror import NoMirror
from services.tuner.neighbours import Answered, Live, Neighbours
from services.tuner.replay import ReplayExample
from services.tuner.server import recipe_of
from services.tuner.settings import TunerSettings
from services.tuner.training_process import TrainingProcess
from services.tuner.tune import Collected, JudgeAgain, Recipe, Tune
from services.tuner.tune_status import TuneStatus
from tests import tiny_loop, tiny_model
from tests.integration.llm.running import Llm
from tests.limits import seconds


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

    async def answer(self, task: str, question: Question, adapter: str) -> Answered:
        messages = chat_messages(tiny_model.messages_of(question.question, question.context))
        name = "" if adapter == BASE_MODEL else adapter
        stream = partial(self._llm.chat, messages, adapter=name, max_tokens=tiny_loop.TUNING["max_answer_tokens"], reproducible=True)
        responses = await asyncio.to_thread(lambda: list(stream()))
        assert responses[0].model_version == (name or tiny_model.NAME)
        return Answered("".join(response.text for response in responses), "answer@v1")

    async def likelihood(self, messages: Sequence[Message], answer: str, adapter: str) -> float | None:
        request = ScoreAnswerRequest(messages=chat_messages(messages), answer=answer, adapter="" if adapter == BASE_MODEL else adapter)
        score = await asyncio.to_thread(self._llm.admin.ScoreAnswer, request, timeout=seconds(60))
        return math.exp(score.log_likelihood / score.num_tokens)

    async def base_hash(self) -> str:
        return str(self._llm.admin.ListAdapters(ListAdaptersRequest(), timeout=seconds(60)).base_hash)

    async def wait_live(self, task: str, name: AdapterName) -> bool:
        return True


class Replay:
    """What tests/tiny_loop.py rehearses."""

    async def given(self, task: str) -> Sequence[ReplayExample]:
        return tiny_loop.replay_examples()

    async def items(self) -> Sequence[object]:
        raise AssertionError("the replay examples are given")


class Alias:
    """control.v1 with one alias."""

    def __init__(self) -> None:
        self.target, self.version = BASE_MODEL, 0

    async def live(self, task: str) -> Live:
        return Live(self.target, self.version)

    async def set_live(self, task: str, name: AdapterName, expected_version: int) -> None:
        assert expected_version == self.version
        self.target, self.version = str(name), expected_version + 1


class ForgetfulStore(AsyncAdapterStore):
    """Keeps verdicts to itself, so that one adapter can be judged again and again."""

    def __init__(self, llm: Llm) -> None:
        super().__init__(llm.store)
        self.verdicts: list[AdapterVerdict] = []

    async def write_verdict(self, verdict: AdapterVerdict) -> None:
        self.verdicts.append(verdict)

    async def verdict(self, name: AdapterName) -> AdapterVerdict | None:
        return None


class Bench:
    """Tunes and judges."""

    def __init__(self, llm: Llm, folder: Path) -> None:
        self.llm, self.alias, self.store = llm, Alias(), AsyncAdapterStore(llm.store)
        self._training = TrainingProcess(folder / "work", keep=3, timeout_s=seconds(300))

    async def tune(self, lessons: Sequence[tiny_loop.Lesson], *, evaluation: Evaluation | None = None, **settings: object) -> TuneStatus:
        """Run one tune to its end."""
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
        collected = Collected(
            task=tiny_loop.TASK, demonstrations=demonstrations, evaluation=evaluation or tiny_loop.evaluation(), actor="test"
        )
        base = BaseModel(name=tiny_model.NAME, folder=str(tiny_model.tiny_model()))
        await Tune(base, name, collected, _recipe(settings), self._neighbours(self.store), status).run()
        return status

    async def judge(self, adapter: str, store: AsyncAdapterStore, *, evaluation: Evaluation, **settings: object) -> TuneStatus:
        """Judge an adapter of the store against what the alias points at; the alias stays where it is."""
        name = AdapterName.parse(adapter)
        status = TuneStatus(tune_id="t", task=name.task, adapter=adapter)
        before = (self.alias.target, self.alias.version)
        await JudgeAgain(name, evaluation, _recipe(settings), self._neighbours(store), status).run()
        self.alias.target, self.alias.version = before
        return status

    def _neighbours(self, store: AsyncAdapterStore) -> Neighbours:
        return Neighbours(
            tuning=self._training,
            store=store,
            replay=Replay(),
            prompts=Prompts(),
            serving=Served(self.llm),
            control=self.alias,
            mirror=NoMirror(),
            now_ms=wall_ms,
        )


def _recipe(settings: dict[str, object]) -> Recipe:
    # The engine of these tests takes two questions at a time.
    return recipe_of(TunerSettings(**{**tiny_loop.TUNING, "judge_concurrency": 2, **settings}))
