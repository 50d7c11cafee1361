"""Runs trials one after another in this process, until as many as wanted are done or the time is over."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.search.measure import Config, Losses, Measured, NotFinite, Objective, measure
from services.trainer.search.parts import Trialled
from services.trainer.search.space import Space
from services.trainer.search.study import LOSSES, MEASURES, SAME_AS, SECONDS, SIZE, Finished

Clock = Callable[[], float]


class Trials(Protocol):
    """What a runner asks of a study, which may be far away (`remote.RemoteStudy`). Trials go by their numbers."""

    @property
    def space(self) -> Space:
        """Return what is searched."""

    def next(self, most: int) -> tuple[int, dict[str, Any]] | None:
        """Begin a trial; return its number and its values by key, None where so many are done or under way."""

    def same_as(self, number: int) -> Finished | None:
        """Return a finished trial of the same values."""

    def should_prune(self, number: int, step: int, value: float) -> bool:
        """Note a portion's value; say whether the trial is not worth going on with."""

    def complete(self, number: int, value: float, noted: Mapping[str, Any]) -> None:
        """Close a trial that was measured."""

    def prune(self, number: int, noted: Mapping[str, Any]) -> None:
        """Close a trial that was ended early."""

    def fail(self, number: int, reason: str) -> None:
        """Close a trial that could not be measured."""

    def put_off(self, number: int) -> None:
        """Close a trial that the time limit ended."""


class OutOfTime(Exception):
    """The time limit is reached in the middle of a trial. A search with more time takes it up."""


class _Pruned(Exception):
    """A trial is not worth going on with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a search ends.

    Attributes:
        trials: done, the start not counted.
        deadline: on the clock; None: none.
    """

    trials: int
    deadline: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """Runs trials.

    Attributes:
        study: where they are kept.
        parts: what they learn and are compared on.
        config: how.
        objective: what is made of their measures.
        tell: is told a line per trial.
        learn: learns and scores a spec.
        clock: in seconds.
        check: is called after each step of learning; may raise to end the process.
    """

    study: Trials
    parts: Trialled
    config: Config
    objective: Objective
    tell: Callable[[str], None]
    learn: Callable[..., Measured] = measure
    clock: Clock = time.monotonic
    check: Callable[[], None] = lambda: None

    def run(self, limits: Limits) -> bool:
        """Run until a limit is reached; return whether it was the time."""
        while not self._is_late(limits):
            begun = self.study.next(limits.trials)
            if begun is None:
                return False
            try:
                self._one(*begun, limits)
            except OutOfTime:
                self.study.put_off(begun[0])
                self.tell(f"trial {begun[0]}: put off, the time is over")
        return True

    def _is_late(self, limits: Limits) -> bool:
        return limits.deadline is not None and self.clock() >= limits.deadline

    def _one(self, number: int, values: Mapping[str, Any], limits: Limits) -> None:
        """Run one trial; what goes wrong in it is noted and ends nothing else."""
        before = self.study.same_as(number)
        if before is not None:
            kept = {name: before.noted[name] for name in (MEASURES, LOSSES, SIZE)}
            self.study.complete(number, before.value, kept | {SECONDS: 0.0, SAME_AS: before.number})
            self.tell(f"trial {number}: {before.value:.4f}, as trial {before.number}, which has the same values")
            return
        losses: list[Losses] = []
        began = self.clock()

        def on_portion(portion: int, of_portion: Losses) -> None:
            losses.append(of_portion)
            if self.study.should_prune(number, portion, self.objective.of_portion(portion, of_portion)):
                raise _Pruned

        def after_step() -> None:
            self.check()
            if self._is_late(limits):
                raise OutOfTime

        try:
            spec: FeatureSpec = self.study.space.spec(values)
            found = self.learn(spec, self.parts, self.config, on_portion=on_portion, after_step=after_step)
            measures = found.by_task()
            value = self.objective.value(measures)
            if not math.isfinite(value):
                raise NotFinite("what it is worth is no number")
        except OutOfTime:
            raise
        except _Pruned:
            self.study.prune(number, {LOSSES: losses, SECONDS: round(self.clock() - began, 2)})
            self.tell(f"trial {number}: ended after portion {len(losses)}; {_shown(values)}")
        except Exception as error:  # noqa: BLE001 - a network of one's own may raise anything, and a large one takes all memory: it is noted, with its reason
            reason = f"{type(error).__name__}: {error}"
            self.study.fail(number, reason)
            self.tell(f"trial {number}: failed ({reason:.300}); {_shown(values)}")
        else:
            noted = {MEASURES: measures, LOSSES: losses, SIZE: found.parameters, SECONDS: round(self.clock() - began, 2)}
            self.study.complete(number, value, noted)
            self.tell(f"trial {number}: {value:.4f} of the start's; {_shown(values)}; {noted[SECONDS]:.0f} s")


def _shown(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items())
