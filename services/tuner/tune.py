"""One tune, from its examples to a live alias. Free of I/O and clock.

    collect -> train -> publish -> load -> evaluate -> adapter gate -> alias

Whatever fails ends the tune as "failed" and changes nothing for those who ask; what the adapter gate refuses ends it as "refused", and the
adapter stays in the store with the verdict beside it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from services.common.language.adapter_manifest import AdapterManifest, AdapterVerdict, Metric
from services.common.language.adapter_name import AdapterName
from services.common.language.aliases import BASE_MODEL
from services.common.language.base_model import BaseModel
from services.common.language.evaluation import Evaluation, HeldOut, Question, is_right
from services.common.platform.errors import ServiceError
from services.tuner.adapter_gate import AdapterGateLimits, Candidate, SliceOutcome, measurements, refused_answers, refused_weights
from services.tuner.dataset import Dataset, TrainingExample, make_dataset, steps_for
from services.tuner.examples import Demonstration
from services.tuner.job import HyperParameters, Job, Step, TrainingResult
from services.tuner.neighbours import Live, Neighbours
from services.tuner.replay import replay_from_items, without_evaluated
from services.tuner.tune_status import TuneStatus

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How tunes are made; see TunerSettings for each field. `hyper.num_steps` is replaced by what the number of demonstrations asks for."""

    hyper: HyperParameters
    num_passes: float
    min_steps: int
    max_steps: int
    replay_share: float
    replay_examples: int
    concurrency: int
    limits: AdapterGateLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What one tune is made of: taken once at its start."""

    task: str
    demonstrations: tuple[Demonstration, ...]
    evaluation: Evaluation
    actor: str


class Tune:
    """Runs once."""

    def __init__(
        self, base: BaseModel, name: AdapterName, collected: Collected, recipe: Recipe, neighbours: Neighbours, status: TuneStatus
    ) -> None:
        """`name` is unused so far; `status` is kept up to date."""
        self._base, self._name, self._collected = base, name, collected
        self._recipe, self._neighbours, self.status = recipe, neighbours, status
        self._is_loaded = False

    async def run(self) -> None:
        """Go through all phases. Never raises but for cancellation: what went wrong is in the status."""
        status = self.status
        try:
            await self._run()
        except asyncio.CancelledError:
            status.phase, status.error = "failed", "the tuner was stopped"
            raise
        except ServiceError as error:
            _log.error("tune %s of %s failed while %s: %s", status.tune_id, self._name, status.phase, error)
            status.phase, status.error = "failed", str(error)
        except Exception as error:  # noqa: BLE001 - the edge of a tune: the tuner goes on
            _log.exception("tune %s of %s failed while %s", status.tune_id, self._name, status.phase)
            status.phase, status.error = "failed", f"{type(error).__name__}: {error}"
        finally:
            if status.phase == "failed":
                self._neighbours.mirror.failed(status.mlflow_run_id, status.error)
            else:
                self._neighbours.mirror.changed()
        if status.phase != "live" and self._is_loaded:
            await self._unload()

    async def _run(self) -> None:
        status, started_ms = self.status, self._neighbours.now_ms()
        demonstrations = self._not_held_out()
        if not demonstrations:
            self._refuse(["each demonstration repeats a held-out question of the evaluation: there is nothing that could be learned from"])
            return
        live = await self._neighbours.control.live(self._collected.task)
        drawn = await self._dataset(demonstrations)
        hyper = replace(self._recipe.hyper, num_steps=len(drawn.batches))
        status.num_steps = hyper.num_steps
        num_held_out = len(self._collected.demonstrations) - len(demonstrations)
        parameters = _parameters(hyper, drawn, live.target, self._collected.actor) | {"num_held_out_demonstrations": str(num_held_out)}
        status.mlflow_run_id = await self._neighbours.mirror.begin(self._name, parameters)
        status.phase = "training"
        job = Job(
            base_folder=self._base.folder,
            base_name=self._base.name,
            hyper_parameters=hyper,
            examples=drawn.examples,
            batches=drawn.batches,
        )
        result = await self._neighbours.tuning.train(self._name, job, self._on_step)
        trained = self._trained(drawn, result)
        await self._publish(hyper, trained, live.target, started_ms)
        candidate = Candidate(losses=result.losses, norms=result.norms, replay_share=trained.replay_share)
        refusals = refused_weights(candidate, self._recipe.limits)
        if refusals:
            await self._decide(refusals, {}, live)
            return
        status.phase = "loading"
        await self._neighbours.serving.load(self._name)
        self._is_loaded = True
        status.phase = "evaluating"
        task, context = await self._evaluate(live.target)
        await self._decide(refused_answers(task, context, candidate, self._recipe.limits), measurements(task, context), live)

    def _not_held_out(self) -> list[Demonstration]:
        """Return the demonstrations without those that would make the evaluation tell what was learned by heart."""
        held_out = HeldOut(self._collected.evaluation)
        kept = [one for one in self._collected.demonstrations if not held_out.has(one.question)]
        if len(kept) < len(self._collected.demonstrations):
            num = len(self._collected.demonstrations) - len(kept)
            _log.warning("%s: %d demonstrations repeat held-out questions and are left out", self._name, num)
        return kept

    def _trained(self, drawn: Dataset, result: TrainingResult) -> Dataset:
        if result.left_out:
            limit = self._recipe.hyper.max_tokens
            _log.warning("%s: %d examples are longer than %d tokens and were left out", self._name, len(result.left_out), limit)
        return drawn.without(frozenset(result.left_out))

    def _on_step(self, step: Step) -> None:
        self.status.step, self.status.loss = step.step, step.loss

    async def _dataset(self, kept: Sequence[Demonstration]) -> Dataset:
        recipe = self._recipe
        demonstrations = [TrainingExample(messages=one.messages, answer=one.answer, is_replay=False) for one in kept]
        replay = await self._replay() if recipe.replay_share > 0 else []
        batch = recipe.hyper.batch_size
        num_steps = steps_for(
            len(demonstrations),
            per_batch=max(1, batch - round(batch * recipe.replay_share)),
            num_passes=recipe.num_passes,
            least=recipe.min_steps,
            most=recipe.max_steps,
        )
        return make_dataset(
            demonstrations,
            replay,
            num_steps=num_steps,
            batch_size=batch,
            replay_share=recipe.replay_share,
            seed=recipe.hyper.seed,
        )

    async def _replay(self) -> list[TrainingExample]:
        given, held_out = await self._neighbours.replay.given(), HeldOut(self._collected.evaluation)
        if given is None:
            items = without_evaluated(await self._neighbours.replay.items(), self._collected.evaluation)
            given = replay_from_items(items, count=self._recipe.replay_examples, seed=self._recipe.hyper.seed)
        examples = [one for one in given if not held_out.has(one.question)][: self._recipe.replay_examples]
        task = self._collected.task
        prompts = await self._each([partial(self._neighbours.prompts.assemble, task, one.question, one.passages) for one in examples])
        return [
            TrainingExample(messages=messages, answer=one.answer, is_replay=True) for messages, one in zip(prompts, examples, strict=True)
        ]

    async def _publish(self, hyper: HyperParameters, dataset: Dataset, parent: str, started_ms: int) -> None:
        manifest = AdapterManifest(
            name=str(self._name),
            base_model=self._name.base,
            task=self._name.task,
            dataset_hash=dataset.content_hash,
            parent="" if parent == BASE_MODEL else parent,
            replay_share=dataset.replay_share,
            num_examples=dataset.num_demonstrations,
            hyper_parameters={name: getattr(hyper, name) for name in hyper.__slots__},
            created_at_ms=started_ms,
            mlflow_run_id=self.status.mlflow_run_id,
        )
        await self._neighbours.store.publish(self._name, self._neighbours.tuning.adapter_folder(self._name), manifest)
        self._neighbours.mirror.changed()

    async def _evaluate(self, live: str) -> tuple[SliceOutcome, SliceOutcome]:
        """Return the outcomes of task and context slice; the metrics of the status fill up as they come."""
        outcomes = []
        for name, questions in (("task", self._collected.evaluation.task_slice), ("context", self._collected.evaluation.context_slice)):
            base = await self._right(questions, BASE_MODEL, f"{name}.base")
            is_base_live = live == BASE_MODEL
            current = base if is_base_live else await self._right(questions, live, f"{name}.live")
            candidate = await self._right(questions, str(self._name), f"{name}.candidate")
            self.status.metrics[f"{name}.live"] = sum(current) / len(current)
            outcomes.append(SliceOutcome(base=base, live=current, candidate=candidate))
        return outcomes[0], outcomes[1]

    async def _right(self, questions: Sequence[Question], adapter: str, metric: str) -> list[bool]:
        task = self._collected.task
        answers = await self._each(
            [partial(self._neighbours.serving.answer, task, one.question, one.context, adapter) for one in questions]
        )
        right = [is_right(answer, one.accept, one.reject) for answer, one in zip(answers, questions, strict=True)]
        self.status.metrics[metric] = sum(right) / len(right)
        return right

    async def _decide(self, refusals: list[str], metrics: dict[str, Metric], live: Live) -> None:
        verdict = AdapterVerdict(
            name=str(self._name),
            accepted=not refusals,
            refusals=tuple(refusals),
            metrics=metrics,
            compared_with=live.target,
            decided_at_ms=self._neighbours.now_ms(),
        )
        await self._neighbours.store.write_verdict(verdict)
        self.status.metrics.update({name: metric.value for name, metric in metrics.items()})
        if refusals:
            self._refuse(refusals)
            return
        await self._neighbours.control.set_live(self._collected.task, self._name, live.version)
        if not await self._neighbours.serving.wait_live(self._collected.task, self._name):
            _log.warning("%s is live by control.v1, and the router does not answer with it yet", self._name)
        self.status.phase = "live"
        _log.info("%s is live for task %s: %s", self._name, self._collected.task, _in_short(self.status.metrics))

    def _refuse(self, refusals: list[str]) -> None:
        self.status.phase, self.status.refusals = "refused", refusals
        _log.warning("%s is refused: %s", self._name, "; ".join(refusals))

    async def _unload(self) -> None:
        try:
            await self._neighbours.serving.unload(self._name)
        except ServiceError as error:
            _log.warning("%s stays loaded until its slot is needed: %s", self._name, error)

    async def _each(self, calls: Sequence[Callable[[], Awaitable[_T]]]) -> list[_T]:
        """Await all, a bounded number at once, in order; the first failure cancels the rest."""
        room = asyncio.Semaphore(self._recipe.concurrency)

        async def one(call: Callable[[], Awaitable[_T]]) -> _T:
            async with room:
                return await call()

        tasks = [asyncio.ensure_future(one(call)) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()


def _parameters(hyper: HyperParameters, dataset: Dataset, live: str, actor: str) -> dict[str, str]:
    """Return what a run is labelled with."""
    known = {name: str(getattr(hyper, name)) for name in hyper.__slots__}
    return {
        **known,
        "dataset_hash": dataset.content_hash,
        "replay_share": f"{dataset.replay_share:g}",
        "num_demonstrations": str(dataset.num_demonstrations),
        "parent": live,
        "actor": actor,
    }


def _in_short(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in sorted(metrics.items()))
