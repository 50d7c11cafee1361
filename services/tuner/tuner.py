"""Which tune runs when: one at a time, on demand or when a task has enough new demonstrations. Free of I/O and clock.

Of several tasks that are due the one that has waited longest comes first. A tune whose adapter is in the store, and whose judgement was
cut short by a service that was down, is judged again and not trained again.

Tunes live in this process only: after a restart nothing is known of a tune that was running, its examples are still there, and another may
be started. Its adapter, if it got so far, stays in the store without a verdict: JudgeAdapter judges it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.common.language.adapter_manifest import AdapterVerdict
from services.common.language.adapter_name import AdapterName
from services.common.language.base_model import BaseModel
from services.common.language.evaluation import Evaluation
from services.common.platform.errors import Conflict, InvalidInput, NotFound, ServiceError
from services.tuner.examples import Demonstration, TuneRules, waits_for
from services.tuner.judgement import answering
from services.tuner.neighbours import Neighbours
from services.tuner.tune import Collected, JudgeAgain, Recipe, Tune, Work
from services.tuner.tune_status import ENDED, TuneStatus

_TASK = re.compile(r"[a-z0-9_-]{1,64}")
_MAX_ACTOR_CHARS = 256
_MAX_REMEMBERED = 100
_MAX_DOUBLINGS = 6

_log = logging.getLogger(__name__)


class Examples(Protocol):
    """The curated examples, as they are now."""

    def tasks(self) -> list[str]:
        """Return the tasks that have examples."""
        ...

    def demonstrations(self, task: str) -> list[Demonstration]:
        """Return a task's demonstrations."""
        ...

    def num_demonstrations(self, task: str) -> int:
        """Return how many demonstrations of a task there are."""
        ...

    def counted_ms(self, task: str, *, most_of_a_user: int, since_ms: int = 0) -> list[int]:
        """Return when those came that count towards a tune, oldest first; see ExampleBook."""
        ...

    def num_judged(self, task: str) -> int:
        """Return how many answers of a task users have judged."""
        ...


class Evaluations(Protocol):
    """The evaluation files."""

    def file(self, task: str) -> Path:
        """Return where a task's evaluation file is, or should be."""
        ...

    def exists(self, task: str) -> bool:
        """Return whether the file is there."""
        ...

    def load(self, task: str) -> Evaluation:
        """Return what the file says. Raises InvalidInput when it cannot be used."""
        ...


class History(Protocol):
    """What earlier processes tuned."""

    async def newest_decided_tune_ms(self, base: str, task: str) -> int:
        """Return when the newest tune that the adapter gate decided about began, Unix milliseconds; 0 when there is none."""
        ...


class Learning(Protocol):
    """Whether learning is paused, for the whole mesh."""

    async def is_paused(self) -> bool:
        """Return whether an operator has paused learning. Raises Unavailable."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What says whether a tune may begin."""

    examples: Examples
    evaluations: Evaluations
    history: History
    learning: Learning


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """What is known of a task. `waiting_for` is empty when a tune may start."""

    demonstrations: int
    judged: int
    waiting_for: str


@dataclass(slots=True)
class _Past:
    """What is remembered of a task's tunes: when the newest that the adapter gate decided about began (0: none), and what failed since.

    `unjudged`: the adapter whose judgement was cut short; empty when there is none. `begun_ms`: when its tune began.
    """

    decided_ms: int
    num_failures: int = 0
    not_before_ms: int = 0
    unjudged: str = ""
    begun_ms: int = 0


class Tuner:
    """Owns the tunes of this process. Every method belongs on one event loop."""

    def __init__(
        self,
        base: BaseModel,
        sources: Sources,
        neighbours: Neighbours,
        recipe: Recipe,
        rules: TuneRules,
        *,
        new_id: Callable[[], str],
        on_end: Callable[[TuneStatus], None],
    ) -> None:
        """`new_id` makes tune ids; `on_end` is told of every tune that ended."""
        self.base = base
        self._examples, self._evaluations = sources.examples, sources.evaluations
        self._history, self._learning = sources.history, sources.learning
        self._neighbours, self._recipe, self._rules, self._new_id, self._on_end = neighbours, recipe, rules, new_id, on_end
        self._tunes: OrderedDict[str, TuneStatus] = OrderedDict()
        self._pasts: dict[str, _Past] = {}
        self._starting = asyncio.Lock()
        self._running: asyncio.Task[None] | None = None

    @property
    def running_tune_id(self) -> str:
        """The tune that runs now; empty when none does."""
        newest = next(reversed(self._tunes.values()), None)
        return newest.tune_id if newest is not None and newest.phase not in ENDED else ""

    def tasks(self) -> dict[str, TaskState]:
        """Return what is known, by task."""
        return {task: self.task(task) for task in self._examples.tasks()}

    def task(self, task: str) -> TaskState:
        """Return what is known of one task."""
        num, most = self._examples.num_demonstrations(task), self._rules.most_of_a_user(self._rules.min_demonstrations)
        waiting_for = waits_for(
            num,
            len(self._examples.counted_ms(task, most_of_a_user=most)),
            self._rules,
            has_evaluation=self._evaluations.exists(task),
            evaluation_file=str(self._evaluations.file(task)),
        )
        return TaskState(demonstrations=num, judged=self._examples.num_judged(task), waiting_for=waiting_for)

    def get(self, tune_id: str) -> TuneStatus:
        """Return a tune. Raises NotFound."""
        status = self._tunes.get(tune_id)
        if status is None:
            raise NotFound(f"this process knows no tune {tune_id[:80]!r}; it remembers the last {_MAX_REMEMBERED}")
        return status

    async def start(self, task: str, actor: str) -> TuneStatus:
        """Begin a tune and return its status, which changes from then on.

        Raises:
            InvalidInput: task or actor cannot be one, or the evaluation file cannot be used.
            Conflict: below the thresholds, or a tune is running.
            Unavailable: the adapter store cannot be read.
        """
        if not _TASK.fullmatch(task):
            raise InvalidInput(f"task: {task[:80]!r} is not 1 to 64 of a-z, 0-9, '_' and '-'")
        _check_actor(actor)
        async with self._starting:
            self._check_idle()
            waiting_for = self.task(task).waiting_for
            if waiting_for:
                raise Conflict(f"task {task!r} cannot be tuned yet: {waiting_for}")
            evaluation = await asyncio.to_thread(self._evaluations.load, task)
            await self._past(task)
            name = await self._neighbours.store.next_name(self.base.name, task)
            return self._begin(name, evaluation, actor)

    async def judge(self, adapter: str, actor: str) -> TuneStatus:
        """Begin to judge an adapter of the store, and return the status, which changes from then on.

        Raises:
            InvalidInput: it is no adapter's name, or the evaluation file cannot be used.
            NotFound: the store does not have it, or its task has no evaluation file.
            Conflict: it is of another base, was accepted or refused, or a tune is running.
            Unavailable: the adapter store cannot be read.
        """
        _check_actor(actor)
        name = AdapterName.parse(adapter)
        if name.base != self.base.name:
            raise Conflict(f"{name} is made for {name.base}, and {self.base.name} is served")
        async with self._starting:
            self._check_idle()
            await self._neighbours.store.manifest(name)
            verdict = await self._neighbours.store.verdict(name)
            past = await self._past(name.task)
            if verdict is not None and not verdict.is_undecided and not await self._lacks_its_alias(name, verdict, past):
                raise Conflict(f"{name} was {verdict.outcome} already, and a verdict is for ever: publish the next version")
            evaluation = await asyncio.to_thread(self._evaluations.load, name.task)
            status = self._new_status(name)
            work = JudgeAgain(name, evaluation, self._recipe, self._neighbours, status)
            self._go(work, past.begun_ms if past.unjudged == str(name) else past.decided_ms)
            _log.info("adapter %s is judged as %s, asked for by %s", name, status.tune_id, actor)
            return status

    async def _lacks_its_alias(self, name: AdapterName, verdict: AdapterVerdict, past: _Past) -> bool:
        """Whether an accepted adapter only could not be made live, and what it was compared with still answers."""
        if not verdict.accepted or past.unjudged != str(name):
            return False
        live = answering(await self._neighbours.control.live(name.task), name.base)
        return live.target in (verdict.compared_with, str(name))

    def _check_idle(self) -> None:
        if self.running_tune_id:
            raise Conflict(f"tune {self.running_tune_id} of task {self._tunes[self.running_tune_id].task!r} is running")

    async def start_due(self) -> TuneStatus | None:
        """Begin with the task that has been due for longest, unless a tune runs or learning is paused.

        Raises:
            ServiceError: none could begin, and this is why the first one could not. One task's evaluation file keeps no other waiting.
        """
        if self.running_tune_id:
            return None
        failure: ServiceError | None = None
        due: list[tuple[int, str]] = []
        for task in self._examples.tasks():
            try:
                since_ms = await self._due_since_ms(task)
            except ServiceError as error:
                failure = failure or error
            else:
                due += [(since_ms, task)] if since_ms is not None else []
        for _, task in sorted(due):
            try:
                if await self._learning.is_paused():
                    return None
                return await self._begin_due(task)
            except ServiceError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return None

    async def _begin_due(self, task: str) -> TuneStatus:
        past = await self._past(task)
        if not past.unjudged:
            return await self.start(task, "tuner")
        try:
            return await self.judge(past.unjudged, "tuner")
        except (Conflict, NotFound):
            if not self.running_tune_id:
                verdict = await self._neighbours.store.verdict(AdapterName.parse(past.unjudged))
                if verdict is not None and verdict.outcome == "refused":  # it was decided, and only the acknowledgement was lost
                    self._pasts[task] = _Past(past.begun_ms)
                past.unjudged = ""  # judging it cannot help: the next look begins a tune
            raise

    async def _due_since_ms(self, task: str) -> int | None:
        """Return since when an automatic tune may begin, or a judgement be repeated; None: not now. Each retry waits longer.

        After a failed tune its demonstrations still count as new.
        """
        if not _TASK.fullmatch(task):
            return None
        past = await self._past(task)
        if self._neighbours.now_ms() < past.not_before_ms:
            return None
        if past.unjudged:
            return past.begun_ms
        if self.task(task).waiting_for:
            return None
        needed = self._rules.min_new_demonstrations
        since_ms = past.decided_ms + 1 if past.decided_ms else 0
        counted_ms = self._examples.counted_ms(task, most_of_a_user=self._rules.most_of_a_user(needed), since_ms=since_ms)
        return counted_ms[needed - 1] if len(counted_ms) >= needed else None

    async def _past(self, task: str) -> _Past:
        if task not in self._pasts:
            self._pasts[task] = _Past(await self._history.newest_decided_tune_ms(self.base.name, task))
        return self._pasts[task]

    async def is_paused(self) -> bool:
        """Return whether automatic tunes wait because learning is paused; False when that is not known."""
        try:
            return await self._learning.is_paused()
        except ServiceError as error:
            _log.warning("%s", error)
            return False

    async def stop(self) -> None:
        """End the tune that runs, as failed."""
        if self._running is not None and not self._running.done():
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    def _begin(self, name: AdapterName, evaluation: Evaluation, actor: str) -> TuneStatus:
        task = name.task
        begun_ms = self._neighbours.now_ms()
        collected = Collected(task=task, demonstrations=tuple(self._examples.demonstrations(task)), evaluation=evaluation, actor=actor)
        status = self._new_status(name)
        self._go(Tune(self.base, name, collected, self._recipe, self._neighbours, status), begun_ms)
        _log.info(
            "tune %s of task %s begins: %d demonstrations, asked for by %s", status.tune_id, task, len(collected.demonstrations), actor
        )
        return status

    def _new_status(self, name: AdapterName) -> TuneStatus:
        status = TuneStatus(tune_id=self._new_id(), task=name.task, adapter=str(name))
        self._tunes[status.tune_id] = status
        while len(self._tunes) > _MAX_REMEMBERED:
            self._tunes.popitem(last=False)
        return status

    def _go(self, work: Work, begun_ms: int) -> None:
        self._running = asyncio.create_task(self._run(work, begun_ms), name=f"tune-{work.status.adapter}")

    async def _run(self, work: Work, begun_ms: int) -> None:
        try:
            await work.run()
        finally:
            self._note_end(work.status, begun_ms)
            self._on_end(work.status)

    def _note_end(self, status: TuneStatus, begun_ms: int) -> None:
        past = self._pasts[status.task]
        if status.phase != "failed":
            self._pasts[status.task] = _Past(begun_ms)
            return
        pause_ms = self._rules.failed_retry_ms * 2 ** min(past.num_failures, _MAX_DOUBLINGS)
        past.num_failures, past.not_before_ms = past.num_failures + 1, self._neighbours.now_ms() + pause_ms
        past.unjudged, past.begun_ms = (status.adapter, begun_ms) if status.may_judge_again else ("", 0)


def _check_actor(actor: str) -> None:
    if not 1 <= len(actor) <= _MAX_ACTOR_CHARS:
        raise InvalidInput(f"actor: it has {len(actor)} characters, 1 to {_MAX_ACTOR_CHARS} are allowed")
