"""One judgement of an adapter: load -> ask -> adapter gate -> alias. Free of I/O and clock.

Questions are asked batch after batch, of each slice that is not decided yet and of those models that an open claim compares, until the
gate's outcome is clear or there is nothing more to ask. Their order is a hash's, so that a file's order plays no part. Template and base
are pinned: when one changes meanwhile, the judgement begins anew, since answers of before and after cannot be compared.

Answers are the same whenever they are asked for, as far as the engine allows: greedy, one after another (`concurrency` 1), the prompt
computed anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from services.common.language.adapter_manifest import AdapterVerdict, Metric
from services.common.language.adapter_name import AdapterName
from services.common.language.aliases import BASE_MODEL
from services.common.language.evaluation import CONTEXT, TASK, Evaluation, Question, is_right
from services.common.platform.errors import ServiceError, Unavailable
from services.tuner.adapter_gate import AdapterGateLimits, Candidate, Decision, SliceAnswers, decide, refused_weights
from services.tuner.neighbours import Live, Neighbours
from services.tuner.paired import Role, measurements
from services.tuner.tune_status import TuneStatus

_T = TypeVar("_T")
_ROLES: tuple[Role, ...] = ("base", "live", "candidate")
_ATTEMPTS = 3

_log = logging.getLogger(__name__)


class Moved(Unavailable):
    """The template or the base changed while an adapter was judged. Judging again helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRules:
    """How adapters are judged: by which limits, and how many questions are asked at once (1: the same answers each time)."""

    limits: AdapterGateLimits
    concurrency: int


@dataclass(slots=True)
class _Slice:
    """What has been asked of a slice so far, by role."""

    questions: Sequence[Question]
    right: dict[Role, list[float]]
    likelihood: dict[Role, list[float]]


@dataclass(slots=True)
class _Pinned:
    """What must not change: the base's hash, and the template's version (empty until the first answer)."""

    base_hash: str
    prompt_version: str = ""

    def check(self, prompt_version: str) -> None:
        self.prompt_version = self.prompt_version or prompt_version
        if prompt_version != self.prompt_version:
            raise Moved(f"the prompt changed from {self.prompt_version} to {prompt_version or 'none'} while the adapter was judged")


@dataclass(slots=True)
class Judgement:
    """Runs once; `status` is kept up to date.

    Attributes:
        name: of the adapter, which is in the store.
        evaluation: of its task.
    """

    name: AdapterName
    evaluation: Evaluation
    rules: JudgeRules
    neighbours: Neighbours
    status: TuneStatus
    _is_loaded: bool = field(default=False, init=False)

    async def run(self, candidate: Candidate, live: Live) -> None:
        """Judge, and end as "live", "refused" or "undecided". Unless it is live the adapter is unloaded.

        Raises:
            ServiceError: a neighbour failed: nothing was decided, and judging again may help.
        """
        try:
            await self._judge(candidate, answering(live, self.name.base))
        except Exception:
            await self._unload()
            raise

    async def _judge(self, candidate: Candidate, live: Live) -> None:
        refusals = refused_weights(candidate, self.rules.limits)
        if refusals:
            decision = Decision(outcome="refused", reasons=tuple(refusals), findings=())
            await self._conclude(decision, {}, live, _Pinned(""))
            return
        self.status.phase = "loading"
        await self.neighbours.serving.load(self.name)
        self._is_loaded = True
        self.status.phase = "evaluating"
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                slices, decision, pinned = await self._ask_until_clear(candidate, live)
                break
            except Moved as error:
                if attempt == _ATTEMPTS:
                    raise
                _log.warning("%s is judged from the beginning: %s", self.name, error)
        metrics: dict[str, Metric] = {}
        for name, each in slices.items():
            metrics |= measurements(name, each.right)
        await self._conclude(decision, metrics, live, pinned)

    async def _ask_until_clear(self, candidate: Candidate, live: Live) -> tuple[dict[str, _Slice], Decision, _Pinned]:
        pinned = _Pinned(await self.neighbours.serving.base_hash())
        roles = [role for role in _ROLES if role != "live" or live.target != BASE_MODEL]
        slices = {
            name: _Slice(in_order(questions), {role: [] for role in roles}, {role: [] for role in roles})
            for name, questions in self.evaluation.slices().items()
        }
        wanted = {name: set(roles) for name in slices}
        while True:
            has_asked = False
            for name, each in slices.items():
                has_asked |= await self._ask_slice(name, each, wanted[name], live, pinned)
            now = await self.neighbours.serving.base_hash()
            if now != pinned.base_hash:
                raise Moved(f"the base changed from {pinned.base_hash} to {now} while {self.name} was judged")
            answers = {name: SliceAnswers(right=each.right, likelihood=each.likelihood) for name, each in slices.items()}
            decision = decide(answers, candidate, self.rules.limits)
            if decision.outcome != "undecided" or not has_asked:
                return slices, decision, pinned
            wanted = {name: decision.needs(name) for name in slices}

    async def _ask_slice(self, name: str, each: _Slice, roles: set[Role], live: Live, pinned: _Pinned) -> bool:
        """Ask a slice's next batch of these models; return whether there was one."""
        if not roles:
            return False
        asked = len(each.right["candidate"])
        size = self.rules.limits.next_size(asked, len(each.questions))
        if size == asked:
            return False
        adapters: Mapping[Role, str] = {"base": BASE_MODEL, "live": live.target, "candidate": str(self.name)}
        for role in _ROLES:
            if role in roles:
                batch = each.questions[len(each.right[role]) : size]
                each.right[role] += await self._right(batch, adapters[role], pinned)
                self.status.metrics[f"{name}.{role}"] = sum(each.right[role]) / len(each.right[role])
        if name in (TASK, CONTEXT) and "live" in roles:
            for role in ("candidate", "live"):
                batch = each.questions[len(each.likelihood[role]) : size]
                each.likelihood[role] += await self._each([partial(self._likelihood, one, adapters[role]) for one in batch])
        return True

    async def _right(self, questions: Sequence[Question], adapter: str, pinned: _Pinned) -> list[float]:
        task = self.name.task
        answers = await self._each([partial(self.neighbours.serving.answer, task, one, adapter) for one in questions])
        for answer in answers:
            pinned.check(answer.prompt_version)
        pairs = zip(answers, questions, strict=True)
        return [float(is_right(answer.text, one.accept, one.reject, question=one.question)) for answer, one in pairs]

    async def _likelihood(self, question: Question, adapter: str) -> float:
        if not question.answer:
            return math.nan
        messages = await self.neighbours.prompts.assemble(self.name.task, question.question, question.context)
        found = await self.neighbours.serving.likelihood(messages, question.answer, adapter)
        return math.nan if found is None else min(1.0, max(0.0, found))

    async def _conclude(self, decision: Decision, metrics: dict[str, Metric], live: Live, pinned: _Pinned) -> None:
        status = self.status
        verdict = AdapterVerdict(
            name=str(self.name),
            accepted=decision.outcome == "accepted",
            is_undecided=decision.outcome == "undecided",
            refusals=decision.reasons,
            metrics=metrics,
            compared_with=live.target,
            decided_at_ms=self.neighbours.now_ms(),
            questions_needed=decision.questions_needed if decision.outcome == "undecided" else 0,
            prompt_version=pinned.prompt_version,
            base_hash=pinned.base_hash,
        )
        await self.neighbours.store.write_verdict(verdict)
        status.metrics.update({name: metric.value for name, metric in metrics.items()})
        if not verdict.accepted:
            await self._unload()  # the phase says that it is over: nothing may be under way then
            status.phase, status.refusals = ("undecided" if verdict.is_undecided else "refused"), list(decision.reasons)
            status.questions_needed = verdict.questions_needed
            _log.warning("%s is %s: %s", self.name, status.phase, "; ".join(decision.reasons))
            return
        await self.go_live(live)

    async def go_live(self, live: Live) -> None:
        """Point the alias of an accepted adapter at it, unless it points there already.

        Raises:
            Conflict: the alias was moved meanwhile.
            Unavailable: the trainer does not answer; it may have moved it.
        """
        task, status = self.name.task, self.status
        if live.target != str(self.name):
            await self.neighbours.control.set_live(task, self.name, live.version)
        if not await self.neighbours.serving.wait_live(task, self.name):
            _log.warning("%s is live by control.v1, and the router does not answer with it yet", self.name)
        status.phase = "live"
        _log.info("%s is live for task %s: %s", self.name, task, _in_short(status.metrics))

    async def _unload(self) -> None:
        if not self._is_loaded:
            return
        try:
            await self.neighbours.serving.unload(self.name)
        except ServiceError as error:
            _log.warning("%s stays loaded until its slot is needed: %s", self.name, error)

    async def _each(self, calls: Sequence[Callable[[], Awaitable[_T]]]) -> list[_T]:
        return await each_of(calls, self.rules.concurrency)


def answering(live: Live, base: str) -> Live:
    """Return what answers a task: an adapter of another base is not loaded, and the router answers with the base."""
    return live if live.target.startswith(f"{base}--") else replace(live, target=BASE_MODEL)


def in_order(questions: Sequence[Question]) -> list[Question]:
    """Return the questions in the order of a hash of what is asked: files group their questions, and batches must not."""

    def key(question: Question) -> str:
        texts = [question.question, *(text for passage in question.context for text in (passage.title, passage.text))]
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()

    return sorted(questions, key=key)


async def each_of(calls: Sequence[Callable[[], Awaitable[_T]]], concurrency: int) -> list[_T]:
    """Await all, at most `concurrency` at once, in order; the first failure cancels the rest."""
    room = asyncio.Semaphore(concurrency)

    async def one(call: Callable[[], Awaitable[_T]]) -> _T:
        async with room:
            return await call()

    tasks = [asyncio.ensure_future(one(call)) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _in_short(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in sorted(metrics.items()))
