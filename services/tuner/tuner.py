"""Which tune runs when: one at a time, on demand or when a task has enough new demonstrations. Free of I/O and clock.

Tunes live in this process only: after a restart nothing is known of a tune that was running, its examples are still there, and another may
be started. Its adapter, if it got so far, stays in the store without a verdict and never goes live.
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

from services.common.language.adapter_name import AdapterName
from services.common.language.base_model import BaseModel
from services.common.language.evaluation import Evaluation
from services.common.platform.errors import Conflict, InvalidInput, NotFound, ServiceError
from services.tuner.examples import Demonstration, TuneRules, waits_for
from services.tuner.neighbours import Neighbours
from services.tuner.tune import Collected, Recipe, Tune
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

    def num_demonstrations(self, task: str, *, since_ms: int = 0) -> int:
        """Return how many demonstrations of a task came since a time, Unix milliseconds."""
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
    """What is remembered of a task's tunes: when the newest that the adapter gate decided about began (0: none), and what failed since."""

    decided_ms: int
    num_failures: int = 0
    not_before_ms: int = 0


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
        num = self._examples.num_demonstrations(task)
        waiting_for = waits_for(
            num, self._rules, has_evaluation=self._evaluations.exists(task), evaluation_file=str(self._evaluations.file(task))
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
        if not 1 <= len(actor) <= _MAX_ACTOR_CHARS:
            raise InvalidInput(f"actor: it has {len(actor)} characters, 1 to {_MAX_ACTOR_CHARS} are allowed")
        async with self._starting:
            if self.running_tune_id:
                raise Conflict(f"tune {self.running_tune_id} of task {self._tunes[self.running_tune_id].task!r} is running")
            waiting_for = self.task(task).waiting_for
            if waiting_for:
                raise Conflict(f"task {task!r} cannot be tuned yet: {waiting_for}")
            evaluation = await asyncio.to_thread(self._evaluations.load, task)
            await self._past(task)
            name = await self._neighbours.store.next_name(self.base.name, task)
            return self._begin(name, evaluation, actor)

    async def start_due(self) -> TuneStatus | None:
        """Begin a tune of the first task that is due, unless one runs or learning is paused.

        Raises:
            ServiceError: none could begin, and this is why the first one could not. One task's evaluation file keeps no other waiting.
        """
        if self.running_tune_id:
            return None
        failure: ServiceError | None = None
        for task in self._examples.tasks():
            try:
                if await self._is_due(task) and not await self._learning.is_paused():
                    return await self.start(task, "tuner")
            except ServiceError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return None

    async def _is_due(self, task: str) -> bool:
        """Return whether an automatic tune may begin. After a failed one its demonstrations still count as new; each retry waits longer."""
        if not _TASK.fullmatch(task) or self.task(task).waiting_for:
            return False
        past = await self._past(task)
        num_new = self._examples.num_demonstrations(task, since_ms=past.decided_ms + 1 if past.decided_ms else 0)
        return num_new >= self._rules.min_new_demonstrations and self._neighbours.now_ms() >= past.not_before_ms

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
        status = TuneStatus(tune_id=self._new_id(), task=task, adapter=str(name))
        self._tunes[status.tune_id] = status
        while len(self._tunes) > _MAX_REMEMBERED:
            self._tunes.popitem(last=False)
        tune = Tune(self.base, name, collected, self._recipe, self._neighbours, status)
        self._running = asyncio.create_task(self._run(tune, begun_ms), name=f"tune-{name}")
        _log.info(
            "tune %s of task %s begins: %d demonstrations, asked for by %s", status.tune_id, task, len(collected.demonstrations), actor
        )
        return status

    async def _run(self, tune: Tune, begun_ms: int) -> None:
        try:
            await tune.run()
        finally:
            self._note_end(tune.status, begun_ms)
            self._on_end(tune.status)

    def _note_end(self, status: TuneStatus, begun_ms: int) -> None:
        past = self._pasts[status.task]
        if status.phase == "failed":
            pause_ms = self._rules.failed_retry_ms * 2 ** min(past.num_failures, _MAX_DOUBLINGS)
            past.num_failures, past.not_before_ms = past.num_failures + 1, self._neighbours.now_ms() + pause_ms
        else:
            self._pasts[status.task] = _Past(begun_ms)
