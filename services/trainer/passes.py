"""The passes of a batch training: each learned, measured on the held-out part where there are several, checkpointed, and taken up again.

One pass is the default and the rule (services/common/ranker/README.md, D1). Of several, the one counts whose frozen weights lose least on
the held-out part, and training ends when a pass has not been better than the best one before it, as often as `patience` says.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tunemesh.samples.v1.sample_pb2 import SampleGroup

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.networks.output_bias import begin_at
from services.common.ranker.states import Interaction
from services.trainer.attribute_history import AttributeHistory
from services.trainer.batch import EpochStats, FeatureStates, replay, train_epoch
from services.trainer.label_odds import log_odds
from services.trainer.learner import Learner, LearnerConfig
from services.trainer.progress import Progress
from services.trainer.replay_order import BatchConfig, ReplayOrder, replay_order
from services.trainer.training_checkpoint import Standing, TrainingCheckpoints

Arrays = dict[str, npt.NDArray[Any]]

_SMALLEST = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be learned.

    Attributes:
        spec: the feature spec.
        events: in the order of time.
        categories: of every item, by id.
        item_ids: the catalogue that candidates are drawn from while `events` are learned.
        attributes: of users and items, for declared features; None: the spec declares none.
        held_out: the events behind them, on which passes are compared; empty: all passes are made.
    """

    spec: FeatureSpec
    events: Sequence[Interaction]
    categories: Mapping[str, Sequence[str]]
    item_ids: Sequence[str]
    attributes: AttributeHistory | None = None
    held_out: Sequence[Interaction] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PassesConfig:
    """How passes are made.

    Attributes:
        patience: passes in a row that may be no better than the best one before them.
        checkpoint_events: events of a pass between two checkpoints; 0: none.
    """

    patience: int = 1
    checkpoint_events: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of it: the learner of the best pass, the states behind the last of `events`, and the passes, from 1."""

    learner: Learner
    states: FeatureStates
    best_pass: int
    num_passes: int
    held_out_losses: Sequence[float]


class Passes:
    """Makes the passes of one training."""

    def __init__(
        self,
        task: Task,
        config: BatchConfig,
        learner_config: LearnerConfig,
        passes: PassesConfig = PassesConfig(),
        checkpoints: TrainingCheckpoints | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = lambda line: print(line, flush=True),
    ) -> None:
        """checkpoints: where they are kept; None: none are, and none is taken up."""
        self._task, self._config, self._passes = task, config, passes
        self._checkpoints, self._clock, self._say = checkpoints, clock, say
        self._learner = Learner(task.spec, learner_config)
        self._standing = Standing()
        self._best: Arrays | None = None
        self._is_measured = config.epochs > 1 and bool(task.held_out)
        self._checkpoint_due = passes.checkpoint_events

    def run(self) -> Trained:
        """Train, from the checkpoint if there is one.

        Raises:
            ConfigurationError: the checkpoint is of another training.
            Unavailable: a checkpoint cannot be written or read.
        """
        self._take_up()
        placed = replay_order(self._task.events, self._config)
        states: FeatureStates | None = None
        while not self._is_done():
            states = self._pass(placed)
        best = self._best_pass()
        if self._best is not None:
            self._learner.load_state_arrays(self._best)
        if states is None or self._is_measured:
            # They went through the held-out part, or another process made them.
            states = states_behind(self._task, self._config)
        return Trained(self._learner, states, best + 1, self._standing.epoch, tuple(self._standing.held_out_losses))

    def _take_up(self) -> None:
        found = self._checkpoints.read() if self._checkpoints is not None else None
        if found is None:
            self._begin()
            return
        self._standing, arrays, best = found
        self._learner.load_state_arrays(arrays)
        self._best = None if best is None else dict(best)
        num_events = 0 if self._standing.stats is None else self._standing.stats.num_events
        self._checkpoint_due = num_events + self._passes.checkpoint_events
        self._say(f"going on from a checkpoint: pass {self._standing.epoch + 1}/{self._config.epochs}, {num_events:,} events of it learned")

    def _begin(self) -> None:
        task = self._task
        odds_T = log_odds(task.spec, task.events, len(task.item_ids))
        for name in begin_at(self._learner.network, task.spec, odds_T):
            self._say(f"task {name} begins at a probability of one half: its network has no bias of its output")

    def _is_done(self) -> bool:
        if self._standing.stats is not None:
            return False
        losses = self._standing.held_out_losses
        waited = len(losses) - 1 - self._best_pass() if losses else 0
        return self._standing.epoch >= self._config.epochs or waited >= self._passes.patience

    def _best_pass(self) -> int:
        losses = self._standing.held_out_losses
        return int(np.argmin(losses)) if losses else max(self._standing.epoch - 1, 0)

    def _pass(self, placed: ReplayOrder) -> FeatureStates:
        """Learn one pass, or the rest of it, and measure it."""
        task, epoch, started_s = self._task, self._standing.epoch, self._clock()
        what, begun = f"pass {epoch + 1}/{self._config.epochs}", self._standing.stats
        done = 0 if begun is None else begun.num_events
        progress = Progress(what, len(placed), done=done, clock=self._clock, say=self._say)

        def after_step(stats: EpochStats) -> None:
            progress.at(stats.num_events)
            self._standing.stats = stats
            if self._checkpoint_due and stats.num_events >= self._checkpoint_due:
                self._checkpoint_due = stats.num_events + self._passes.checkpoint_events
                self._checkpoint()

        states, stats = train_epoch(
            task.spec,
            self._learner,
            placed,
            task.categories,
            self._config,
            epoch,
            task.item_ids,
            attributes=task.attributes,
            begun=begun,
            after_step=after_step,
        )
        losses = dict(zip(task.spec.task_names, (stats.loss_by_task / stats.num_events).round(4).tolist(), strict=True))
        line = f"{what}: {stats.num_events} events, loss per event {losses}, {self._clock() - started_s:.0f} s"
        if self._is_measured:
            line += f"; held out {self._measure(states):.4f}"
        self._standing.epoch, self._standing.stats = epoch + 1, None
        if self._checkpoint_due:
            self._checkpoint_due = self._passes.checkpoint_events
        self._say(line + (f", best so far pass {self._best_pass() + 1}" if self._is_measured else ""))
        return states

    def _measure(self, states: FeatureStates) -> float:
        """Note the held-out loss of the pass that has just ended, and keep its weights if it is the best one."""
        loss = frozen_loss(self._task, self._learner, states, self._config)
        if not math.isfinite(loss):
            loss = math.inf
        if loss < min(self._standing.held_out_losses, default=math.inf) or self._best is None:
            self._best = self._learner.state_arrays()
        self._standing.held_out_losses.append(loss)
        return loss

    def _checkpoint(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.write(self._standing, self._learner.state_arrays(), self._best)


def states_behind(task: Task, config: BatchConfig) -> FeatureStates:
    """Return the feature states behind the last of a task's events, in the order of their replay."""
    states = FeatureStates(task.spec, task.categories, task.attributes)
    for event in replay_order(task.events, config):
        states.apply(event.interaction)
    return states


def frozen_loss(task: Task, learner: Learner, states: FeatureStates, config: BatchConfig) -> float:
    """Return the log-loss an event, summed over tasks, on the held-out part by the present weights; `states` contain it afterwards.

    Thinned negatives count for those that were not kept.
    """
    total = sum(float(losses_of(task.spec, learner, [group])[0]) for group in held_out_groups(task, states, config))
    return total / len(task.held_out)


def held_out_groups(task: Task, states: FeatureStates, config: BatchConfig) -> Iterator[SampleGroup]:
    """Yield the sample group of each held-out event, but for impressions that are not kept; `states` contain all events afterwards."""
    chosen: dict[str, set[str]] = {}
    for interaction in task.events:
        chosen.setdefault(interaction.user_id, set()).add(interaction.item_id)
    # The same candidates for each pass: `config.epochs` is the number of no pass.
    groups = replay(
        task.spec,
        replay_order(task.held_out, config),
        list(task.categories),
        states,
        config,
        config.epochs,
        first=len(task.events),
        chosen=chosen,
    )
    return (group for group in groups if group.samples)


def losses_of(spec: FeatureSpec, learner: Learner, groups: Sequence[SampleGroup]) -> npt.NDArray[np.float64]:
    """Return the log-loss of each group by the present weights, summed over samples and tasks, float64 [groups]."""
    columns = {name: column for column, name in enumerate(spec.task_names)}
    losses_G = np.zeros(len(groups))
    for at, (group, scores_NT) in enumerate(zip(groups, learner.score(groups), strict=True)):
        for sample, scores_T in zip(group.samples, scores_NT, strict=True):
            for label in sample.labels:
                said = min(max(float(scores_T[columns[label.task]]), _SMALLEST), 1.0 - _SMALLEST)
                losses_G[at] -= math.log(said if label.value > 0.5 else 1.0 - said) / sample.keep_rate
    return losses_G
