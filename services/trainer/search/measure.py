"""Learns one spec on a part of the events and scores the next part, each event before it is learned, as `make train` does.

While it learns, the losses of each portion, taken before its samples are learned, tell a trial that is not worth going on with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.networks.output_bias import begin_at
from services.trainer.attribute_history import AttributeHistory
from services.trainer.batch import EpochStats, train_epoch
from services.trainer.held_out.evaluation import scored
from services.trainer.held_out.report import ALL, METRICS, compare
from services.trainer.held_out.scored import LIVE, ScoredEvents
from services.trainer.label_odds import log_odds
from services.trainer.learner import Learner, LearnerConfig
from services.trainer.replay_order import BatchConfig, replay_order
from services.trainer.search.parts import Trialled

PORTIONS = 8
"""Into so many equal portions the learned part is divided."""

Losses = dict[str, float]
"""By task."""
OnPortion = Callable[[int, Losses], None]
"""Is told the number of a portion, from 1, and its mean loss an event by task; may raise to end the training."""


class NotFinite(Exception):
    """A loss is no number any more. Retrying does not help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How each spec is learned and scored.

    Attributes:
        batch: how the events are replayed.
        seed: of weights and rows.
        max_scored: about so many events are scored; all are learned.
    """

    batch: BatchConfig
    seed: int
    max_scored: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What one spec was worth.

    Attributes:
        events: what was scored.
        portions: the losses of each portion, by task.
        parameters: numbers of the network.
        seconds: that it took.
    """

    events: ScoredEvents
    portions: Sequence[Losses]
    parameters: int
    seconds: float

    def by_task(self) -> dict[str, dict[str, float | None]]:
        """Return the live learner's measures by task; None where one cannot be told. Tasks without a label are absent."""
        found = compare(self.events)
        return {
            task: {metric: of[ALL]["contestants"][LIVE][metric]["value"] for metric in METRICS} for task, of in found.items() if ALL in of
        }


def measure(
    spec: FeatureSpec,
    parts: Trialled,
    config: Config,
    *,
    on_portion: OnPortion = lambda *_: None,
    after_step: Callable[[], None] = lambda: None,
    with_others: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Measured:
    """Learn and score one spec, from nothing, in one pass.

    Args:
        spec: the spec.
        parts: what is learned, and what is scored.
        config: how.
        on_portion: is told of each portion.
        after_step: is called after each step of learning; may raise to end the training.
        with_others: score by frozen weights and by counters, too.
        clock: in seconds.
    Raises:
        NotFinite: a loss is no number.
        ConfigurationError: a network of one's own cannot be made.
    """
    began, placed = clock(), replay_order(parts.learned, config.batch)
    learner = Learner(spec, LearnerConfig.of(spec, seed=config.seed))
    begin_at(learner.network, spec, log_odds(spec, parts.learned, len(parts.first_items)))
    attributes = AttributeHistory(spec.plan, parts.users, parts.items) if spec.features else None
    portions = _Portions(spec, len(placed), on_portion)

    def stepped(stats: EpochStats) -> None:
        portions.at(stats)
        after_step()

    states, _ = train_epoch(
        spec, learner, placed, parts.categories, config.batch, 0, parts.first_items, attributes=attributes, after_step=stepped
    )
    events = scored(
        spec,
        learner,
        states,
        parts.learned,
        parts.scored,
        list(parts.categories),
        config.batch,
        config.max_scored,
        with_others=with_others,
    )
    _check_finite(events)
    size = sum(parameter.numel() for parameter in learner.network.parameters())
    return Measured(events, portions.found, size, clock() - began)


class _Portions:
    """Notes the losses of each portion."""

    def __init__(self, spec: FeatureSpec, num_events: int, on_portion: OnPortion) -> None:
        self.found: list[Losses] = []
        self._names, self._num_events, self._on_portion = spec.task_names, num_events, on_portion
        self._before, self._before_T = 0, np.zeros(len(spec.tasks))

    def at(self, stats: EpochStats) -> None:
        if not np.isfinite(stats.loss_by_task).all():
            worst = self._names[int(np.argmin(np.isfinite(stats.loss_by_task)))]
            raise NotFinite(f"the loss of task {worst} is no number after {stats.num_events} events")
        due = self._num_events * (len(self.found) + 1) / PORTIONS
        if stats.num_events < due:
            return
        losses_T = (stats.loss_by_task - self._before_T) / (stats.num_events - self._before)
        self._before, self._before_T = stats.num_events, stats.loss_by_task.copy()
        self.found.append(dict(zip(self._names, losses_T.tolist(), strict=True)))
        self._on_portion(len(self.found), self.found[-1])


def _check_finite(events: ScoredEvents) -> None:
    for task, rows in events.tasks.items():
        if not all(np.isfinite(scores_N).all() for scores_N in rows.scores.values()):
            raise NotFinite(f"a score of task {task} on the scored part is no number")


@dataclass(frozen=True, slots=True)
class Objective:
    """One number of a trial, relative to the spec that the search starts from: 1 is as good, less is better.

    Attributes:
        metric: of held_out.report.METRICS, without calibration.
        tasks: whose mean it is.
        start: the start's measures by task, on the validation part.
        start_portions: the start's losses by portion.
    """

    metric: str
    tasks: Sequence[str]
    start: Mapping[str, Mapping[str, float | None]]
    start_portions: Sequence[Losses]

    def value(self, measures: Mapping[str, Mapping[str, float | None]]) -> float:
        """Return the mean over the tasks of the error over the start's; the error is the log-loss, or how much is missing to 1.

        Raises:
            NotFinite: a measure cannot be told.
        """
        return math.fsum(self._error(measures, task) / self._error(self.start, task) for task in self.tasks) / len(self.tasks)

    def of_portion(self, number: int, losses: Losses) -> float:
        """Return the mean over the tasks of a portion's loss over the start's."""
        start = self.start_portions[number - 1]
        return math.fsum(losses[task] / max(start[task], _SMALLEST) for task in self.tasks) / len(self.tasks)

    def _error(self, measures: Mapping[str, Mapping[str, float | None]], task: str) -> float:
        value: Any = measures.get(task, {}).get(self.metric)
        if value is None:
            raise NotFinite(f"{self.metric} of task {task} cannot be told on the validation part")
        return max(float(value) if self.metric == "log_loss" else 1.0 - float(value), _SMALLEST)


_SMALLEST = 1e-9
