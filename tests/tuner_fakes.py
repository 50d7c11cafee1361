"""Stand-ins for everything outside a tune: a store in memory, a model that answers by table, an alias, a mirror that notes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from services.common.events.catalog import CatalogItem
from services.common.events.chat import Message, Passage
from services.common.language.adapter_manifest import AdapterManifest, AdapterVerdict
from services.common.language.adapter_name import AdapterName
from services.common.language.aliases import BASE_MODEL
from services.common.language.base_model import BaseModel
from services.common.language.evaluation import Evaluation, Question
from services.common.platform.errors import Conflict, NotFound, Unavailable
from services.tuner.adapter_gate import AdapterGateLimits
from services.tuner.examples import Demonstration, ExampleBook, TuneRules
from services.tuner.job import HyperParameters, Job, Step, TrainingResult
from services.tuner.judgement import JudgeRules
from services.tuner.neighbours import Answered, Live, Neighbours
from services.tuner.replay import ReplayExample
from services.tuner.tune import Recipe
from services.tuner.tuner import Sources, Tuner

BASE = BaseModel(name="Base", folder="/models/Base")
TASK = "helpdesk"
NAME = AdapterName("Base", TASK, 1)

NUM_TASK, NUM_CONTEXT = 200, 300
EVALUATION = Evaluation(
    task_slice=tuple(Question(question=f"held out {i}?", accept=(("nine days",),), answer="nine days") for i in range(NUM_TASK)),
    context_slice=tuple(
        Question(question=f"from when is {i}?", accept=(("1995",),), context=(Passage(f"Evaluated {i} (1995)", "x"),))
        for i in range(NUM_CONTEXT)
    ),
)
ITEMS = [CatalogItem(item_id=str(i), title=f"Film {i} ({1950 + i})", categories=("Drama",)) for i in range(40)]
RECIPE = Recipe(
    hyper=HyperParameters(
        rank=16,
        alpha=32,
        target_modules=("q_proj",),
        learning_rate=1e-3,
        num_steps=1,
        warm_up_steps=1,
        batch_size=8,
        max_tokens=1024,
        dtype="auto",
        num_threads=0,
        seed=0,
    ),
    num_passes=6.0,
    min_steps=4,
    max_steps=60,
    replay_share=0.25,
    replay_examples=20,
    concurrency=4,
    judging=JudgeRules(
        limits=AdapterGateLimits(
            min_task_right=0.5,
            task_margin=0.05,
            context_margin=0.05,
            general_margin=0.1,
            safety_margin=0.03,
            likelihood_margin=0.05,
            false_accept=0.05,
            false_refuse=0.05,
            min_replay_share=0.2,
            max_update_norm=30.0,
            first_questions=32,
            max_questions=2_000,
        ),
        concurrency=2,
    ),
)
_WORDS = ("amber", "basket", "cello", "dragon", "engine", "fossil", "garden", "harbour", "island", "jungle")


def manifest_of(name: AdapterName, **fields: object) -> AdapterManifest:
    """Of an adapter that this tuner trained."""
    known = {"name": str(name), "base_model": name.base, "task": name.task, "dataset_hash": "sha256:d", "replay_share": 0.25}
    return AdapterManifest(**(known | fields))


def demonstrations(count: int = 20, *, created_at_ms: int = 1_000) -> list[Demonstration]:
    return [
        Demonstration(
            example_id=f"{i:03}",
            question=_question(i),
            messages=(Message("user", _question(i)),),
            answer="nine days",
            created_at_ms=created_at_ms,
            user_id=f"user-{i % 3}",
        )
        for i in range(count)
    ]


def _question(number: int) -> str:
    one, two, three = (_WORDS[int(digit)] for digit in f"{number:03}")
    return f"how long may I keep a {one} {two}like {three}house?"


class FakeTuning:
    """`hold`: training waits for it. `result` may be broken by the test."""

    def __init__(self, steps: int = 2) -> None:
        self.jobs: list[Job] = []
        self.hold: asyncio.Event | None = None
        self.failure: Exception | None = None
        self.result = TrainingResult(losses=(2.0, 0.1), seconds=1.0, norms={"layer": 3.0}, num_answer_tokens=10, left_out=())
        self.was_killed = False
        self._steps = steps

    async def train(self, name: AdapterName, job: Job, on_step: Callable[[Step], None]) -> TrainingResult:
        self.jobs.append(job)
        for step in range(1, self._steps + 1):
            on_step(Step(step=step, loss=1.0 / step, gradient_norm=1.0, seconds=0.1))
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.was_killed = True
                raise
        if self.failure is not None:
            raise self.failure
        return self.result

    def adapter_folder(self, name: AdapterName) -> str:
        return f"/jobs/{name}/adapter"


class FakeStore:
    def __init__(self) -> None:
        self.manifests: dict[str, AdapterManifest] = {}
        self.verdicts: dict[str, AdapterVerdict] = {}
        self.newest_ms = 0
        self.measured_norms: Mapping[str, float] = {"layer": 3.0}

    async def next_name(self, base: str, task: str) -> AdapterName:
        return AdapterName(base, task, len(self.manifests) + 1)

    async def publish(self, name: AdapterName, folder: str, manifest: AdapterManifest) -> AdapterManifest:
        assert folder == f"/jobs/{name}/adapter"
        self.manifests[str(name)] = replace(manifest, content_hash="sha256:x")
        return self.manifests[str(name)]

    async def manifest(self, name: AdapterName) -> AdapterManifest:
        if str(name) not in self.manifests:
            raise NotFound(f"there is no adapter {name}")
        return self.manifests[str(name)]

    async def verdict(self, name: AdapterName) -> AdapterVerdict | None:
        return self.verdicts.get(str(name))

    async def norms(self, name: AdapterName) -> Mapping[str, float]:
        return self.measured_norms

    async def write_verdict(self, verdict: AdapterVerdict) -> None:
        assert verdict.name in self.manifests
        assert verdict.name not in self.verdicts or self.verdicts[verdict.name].is_undecided
        self.verdicts[verdict.name] = verdict

    async def newest_decided_tune_ms(self, base: str, task: str) -> int:
        return self.newest_ms


class FakeReplay:
    def __init__(self, items: Sequence[CatalogItem] = ITEMS, given: Sequence[ReplayExample] | None = None) -> None:
        self._items, self._given = items, given

    async def given(self, task: str) -> Sequence[ReplayExample] | None:
        return self._given

    async def items(self) -> Sequence[CatalogItem]:
        return self._items


class FakePrompts:
    async def assemble(self, task: str, question: str, passages: Sequence[Passage]) -> tuple[Message, ...]:
        return (Message("system", f"for {task}"), Message("user", " ".join([*(passage.title for passage in passages), question])))


class FakeServing:
    """The base answers `base_context` of the context questions right and no other; an adapter as `skills` says: (task, context) numbers.

    `likelihoods`: of reference answers, by adapter; without one the llm cannot tell. `prompt_versions` and `base_hashes`: the next to be
    told, the last for ever.
    """

    def __init__(self, *, base_context: int = 150) -> None:
        self.skills: dict[str, tuple[int, int]] = {BASE_MODEL: (0, base_context)}
        self.default = (180, 270)
        self.likelihoods: dict[str, float] = {}
        self.prompt_versions, self.base_hashes = ["answer@v1"], ["sha256:base"]
        self.loaded: list[str] = []
        self.unloaded: list[str] = []
        self.asked = 0
        self.questions: list[tuple[str, str]] = []
        self.at_once = self.most_at_once = 0
        self.load_failure: Exception | None = None
        self.answer_failure: Exception | None = None

    async def load(self, name: AdapterName) -> None:
        if self.load_failure is not None:
            raise self.load_failure
        self.loaded.append(str(name))

    async def unload(self, name: AdapterName) -> None:
        self.unloaded.append(str(name))

    async def answer(self, task: str, question: Question, adapter: str) -> Answered:
        self.asked += 1
        self.questions.append((question.question, adapter))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if self.answer_failure is not None:
            raise self.answer_failure
        assert adapter == BASE_MODEL or adapter in self.loaded or adapter in self.skills
        skill = self.skills.get(adapter, self.default)[1 if question.context else 0]
        number = int("".join(char for char in question.question if char.isdigit()))
        version = self.prompt_versions.pop(0) if len(self.prompt_versions) > 1 else self.prompt_versions[0]
        if number >= skill:
            return Answered("no idea", version)
        return Answered("it is from 1995" if question.context else "nine days, of course", version)

    async def likelihood(self, messages: Sequence[Message], answer: str, adapter: str) -> float | None:
        return self.likelihoods.get(adapter)

    async def base_hash(self) -> str:
        return self.base_hashes.pop(0) if len(self.base_hashes) > 1 else self.base_hashes[0]

    async def wait_live(self, task: str, name: AdapterName) -> bool:
        return True


class FakeControl:
    def __init__(self) -> None:
        self.now = Live(BASE_MODEL, 0)
        self.paused = False
        self.is_down = False

    async def live(self, task: str) -> Live:
        if self.is_down:
            raise Unavailable("the trainer is down")
        return self.now

    async def set_live(self, task: str, name: AdapterName, expected_version: int) -> None:
        if expected_version != self.now.version:
            raise Conflict(f"the alias was moved to {self.now.target}")
        self.now = Live(str(name), expected_version + 1)

    async def is_paused(self) -> bool:
        if self.is_down:
            raise Unavailable("the trainer is down")
        return self.paused


class FakeMirror:
    def __init__(self) -> None:
        self.begun: dict[str, Mapping[str, str]] = {}
        self.failures: list[tuple[str, str]] = []
        self.changes = 0

    async def begin(self, name: AdapterName, parameters: Mapping[str, str]) -> str:
        self.begun[str(name)] = parameters
        return f"run of {name}"

    def changed(self) -> None:
        self.changes += 1

    def failed(self, run_id: str, error: str) -> None:
        self.failures.append((run_id, error))


class World:
    """All of them, wired."""

    def __init__(self) -> None:
        self.tuning, self.store, self.replay, self.prompts = FakeTuning(), FakeStore(), FakeReplay(), FakePrompts()
        self.serving, self.control, self.mirror = FakeServing(), FakeControl(), FakeMirror()
        self.now_ms = 5_000

    @property
    def neighbours(self) -> Neighbours:
        return Neighbours(
            tuning=self.tuning,
            store=self.store,
            replay=self.replay,
            prompts=self.prompts,
            serving=self.serving,
            control=self.control,
            mirror=self.mirror,
            now_ms=lambda: self.now_ms,
        )


class FakeEvaluations:
    def __init__(self) -> None:
        self.tasks = {TASK}
        self.failure: Exception | None = None
        self.broken_tasks = {TASK}
        self.evaluation = EVALUATION

    def file(self, task: str) -> Path:
        return Path(f"/evaluations/{task}.yaml")

    def exists(self, task: str) -> bool:
        return task in self.tasks

    def load(self, task: str):
        if self.failure is not None and task in self.broken_tasks:
            raise self.failure
        return self.evaluation


class Desk(World):
    """The world with a tuner in it, and demonstrations of one task."""

    def __init__(self, num: int = 20, **rules: object) -> None:
        super().__init__()
        self.book, self.evaluations = ExampleBook(max_per_task=1_000, max_tasks=10), FakeEvaluations()
        self.ended = []
        self.add(num)
        self.ids = iter(f"tune-{i}" for i in range(1_000))
        sources = Sources(examples=self.book, evaluations=self.evaluations, history=self.store, learning=self.control)
        known = {"min_demonstrations": 20, "min_new_demonstrations": 10, "failed_retry_ms": 1_000}
        self.tuner = Tuner(
            BASE, sources, self.neighbours, RECIPE, TuneRules(**(known | rules)), new_id=lambda: next(self.ids), on_end=self.ended.append
        )

    def add(self, num: int, *, task: str = TASK, created_at_ms: int = 1_000) -> None:
        begin = self.book.num_demonstrations(task)
        for one in demonstrations(begin + num, created_at_ms=created_at_ms)[begin:]:
            self.book.add_demonstration(task, one)

    async def finish(self) -> None:
        while self.tuner.running_tune_id:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
