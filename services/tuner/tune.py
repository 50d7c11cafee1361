"""One tune, from its examples to a live alias. Free of I/O and clock.

    collect -> train -> publish -> judge (judgement.py: load -> ask -> adapter gate -> alias)

Whatever fails ends the tune as "failed" and changes nothing for those who ask; what the adapter gate does not accept ends it as "refused"
or "undecided", and the adapter stays in the store with the verdict beside it. A judgement that failed is repeated without the training
(`JudgeAgain`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from services.common.language.adapter_manifest import AdapterManifest
from services.common.language.adapter_name import AdapterName
from services.common.language.aliases import BASE_MODEL
from services.common.language.base_model import BaseModel
from services.common.language.evaluation import Evaluation, HeldOut
from services.common.platform.errors import Conflict, ServiceError
from services.tuner.adapter_gate import Candidate
from services.tuner.dataset import Dataset, TrainingExample, make_dataset, steps_for
from services.tuner.examples import Demonstration
from services.tuner.job import HyperParameters, Job, Step, TrainingResult
from services.tuner.judgement import Judgement, JudgeRules, answering, each_of
from services.tuner.neighbours import Neighbours
from services.tuner.replay import replay_from_items, without_evaluated
from services.tuner.replay_words import language_of
from services.tuner.tune_status import TuneStatus

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
    judging: JudgeRules


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What one tune is made of: taken once at its start."""

    task: str
    demonstrations: tuple[Demonstration, ...]
    evaluation: Evaluation
    actor: str


class Work(Protocol):
    """What a tuner does for a while: a tune, or a judgement alone."""

    status: TuneStatus

    async def run(self) -> None:
        """Go through all phases. Never raises but for cancellation: what went wrong is in the status."""
        ...


class _Guarded:
    """Turns whatever goes wrong into the status "failed"."""

    def __init__(self, neighbours: Neighbours, status: TuneStatus) -> None:
        self._neighbours, self.status = neighbours, status

    async def run(self) -> None:
        status = self.status
        try:
            await self._run()
        except asyncio.CancelledError:
            status.phase, status.error = "failed", "the tuner was stopped"
            raise
        except ServiceError as error:
            _log.error("tune %s of %s failed while %s: %s", status.tune_id, status.adapter, status.phase, error)
            status.phase, status.error = "failed", str(error)
            status.may_judge_again = status.is_published
        except Exception as error:  # noqa: BLE001 - the edge of a tune: the tuner goes on
            _log.exception("tune %s of %s failed while %s", status.tune_id, status.adapter, status.phase)
            status.phase, status.error = "failed", f"{type(error).__name__}: {error}"
        finally:
            if status.phase == "failed":
                self._neighbours.mirror.failed(status.mlflow_run_id, status.error)
            else:
                self._neighbours.mirror.changed()

    async def _run(self) -> None:
        raise NotImplementedError


class JudgeAgain(_Guarded):
    """Judges an adapter that is in the store: after a judgement that failed or was undecided, or one that was trained elsewhere.
    Runs once.
    """

    def __init__(self, name: AdapterName, evaluation: Evaluation, recipe: Recipe, neighbours: Neighbours, status: TuneStatus) -> None:
        """`name` is of the tuner's base."""
        super().__init__(neighbours, status)
        self._name, self._evaluation, self._rules = name, evaluation, recipe.judging

    async def _run(self) -> None:
        neighbours, status = self._neighbours, self.status
        status.is_published = True
        manifest = await neighbours.store.manifest(self._name)
        norms = await neighbours.store.norms(self._name)
        live = await neighbours.control.live(self._name.task)
        judgement = Judgement(self._name, self._evaluation, self._rules, neighbours, status)
        verdict = await neighbours.store.verdict(self._name)
        if verdict is not None and verdict.accepted:
            # Its alias could not be moved then.
            if answering(live, self._name.base).target not in (verdict.compared_with, str(self._name)):
                raise Conflict(f"{self._name} was not compared with {live.target}, which answers now: start another tune")
            await judgement.go_live(live)
            return
        is_foreign = not manifest.dataset_hash
        candidate = Candidate(losses=(), norms=norms, replay_share=None if is_foreign else manifest.replay_share)
        await judgement.run(candidate, live)


class Tune(_Guarded):
    """Runs once."""

    def __init__(
        self, base: BaseModel, name: AdapterName, collected: Collected, recipe: Recipe, neighbours: Neighbours, status: TuneStatus
    ) -> None:
        """`name` is unused so far; `status` is kept up to date."""
        super().__init__(neighbours, status)
        self._base, self._name, self._collected, self._recipe = base, name, collected, recipe

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
        status.is_published = True
        candidate = Candidate(losses=result.losses, norms=result.norms, replay_share=trained.replay_share)
        judgement = Judgement(self._name, self._collected.evaluation, self._recipe.judging, self._neighbours, status)
        # What is live may have changed while this one was trained; it is compared with what answers now.
        await judgement.run(candidate, await self._neighbours.control.live(self._collected.task))

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
        replay = await self._replay(kept) if recipe.replay_share > 0 else []
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

    async def _replay(self, kept: Sequence[Demonstration]) -> list[TrainingExample]:
        """Return what is rehearsed: the replay file's examples, else questions about the catalogue in the language of the task; where there
        are neither, the task's own demonstrations that were given with passages.
        """
        task, recipe, held_out = self._collected.task, self._recipe, HeldOut(self._collected.evaluation)
        given = await self._neighbours.replay.given(task)
        if given is None:
            items = without_evaluated(await self._neighbours.replay.items(), self._collected.evaluation)
            language = language_of(text for one in kept for text in (one.question, one.answer))
            given = replay_from_items(items, count=recipe.replay_examples, seed=recipe.hyper.seed, language=language)
        examples = [one for one in given if not held_out.has(one.question)][: recipe.replay_examples]
        if not examples:
            grounded = [one for one in kept if one.is_grounded][: recipe.replay_examples]
            return [TrainingExample(messages=one.messages, answer=one.answer, is_replay=True) for one in grounded]
        calls = [partial(self._neighbours.prompts.assemble, task, one.question, one.passages) for one in examples]
        prompts = await each_of(calls, recipe.concurrency)
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

    def _refuse(self, refusals: list[str]) -> None:
        self.status.phase, self.status.refusals = "refused", refusals
        _log.warning("%s is refused: %s", self._name, "; ".join(refusals))


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
