"""The part of the publish gate that judges quality: refuses to publish when scores have become worse than they were. Pure.

A block (services/trainer/matured.py) is compared with the blocks before it, task by task, in three numbers: AUC, log-loss, calibration.
It is bad in one of them when it is worse than their mean both by what matters (`QualityLimits`) and by more than chance explains
(`_DEVIATIONS` standard deviations of those blocks, which contain whatever the stream does from minute to minute). Two blocks in a row that
are bad in the same number are refused, and so are three that are bad in any. A shorter series is an accident, and joins the others: as far
as is tolerated, so that it does not blind the gate to the next harm. Whatever becomes better passes.

Error rates of the whole path from samples to refusal, with the default limits. False alarms, on simulated clean streams of two partitions
whose share of positives wanders, whose users have heavy tails and whose answers come late (`python tests/quality_streams.py 160`): 0 of
640 hours of one task, each judged some 115 times, so below 0.94 % an hour for two tasks (95 %). In a quarter of them nothing happens; in
one each the trainer restarts, is rolled back, or gets a partition two minutes late, every 10 minutes. The rule of three alone gives none
either; one bad block comes in 6 hours of 100. None in 60,000 events of MovieLens through the learner (570 blocks of interact, 251 of like).

| harm to the simulated stream, of 50 each | refused within an hour | after (median) |
|---|---|---|
| all, half, a quarter of the items get another item's score | 50, 49, 10 | 121 s |
| 10 %, 5 %, 2 % of the labels are turned round | 47, 14, 0 | 121 s, 151 s |
| 3 of 4, half of the answers are lost | 50, 49 | 153 s, 123 s |
| logits four times as large, doubled | 50, 44 | 61 s |

| harm to the learner, MovieLens from event 25,000 on, negatives 600 events after the answer | refused |
|---|---|
| rates of 0.1 (network) and 2 (rows): divergence | after 3 blocks of 100 positives |
| half of the likes are turned round | after 2 blocks of like |
| half of the answers are of bots that choose at random | after 8 blocks |
| 3 of 4 answers are lost | after 4 blocks: the learner follows the answers faster than windows close |
| all features are zero | no: without them it soon does as well as it can |

A block lasts 30 s or more, so a refusal comes 1 to 2.5 minutes after the harm: two blocks, and the window of the last labels.
What it does not see: a loss below the limits; one that comes more slowly than the reference moves (20 minutes to hours); what happens
before `_MIN_REFERENCE` blocks are there, after a start without a checkpoint or after `forget`; and the exposures of the label window before
each start, so that a trainer which restarts every two minutes is not judged.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from services.trainer.matured import Block

_MAX_REFERENCE = 40
_MIN_REFERENCE = 20
_DEVIATIONS = 4.0
_BAD_IN_A_ROW = 2
_BAD_IN_ANY = 3
_PREFIX = "quality/"


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityLimits:
    """By how much a block must be worse than those before it to matter. Infinity switches a check off."""

    auc_drop: float
    """Area under the ROC curve, absolute."""
    log_loss_rise: float
    """Log-loss over that of a constant guess, absolute."""
    calibration_factor: float
    """Sum of predictions over positives, as a factor further away from 1."""


class _Measure(NamedTuple):
    """One number of a block. `worse`: by how much the block is worse than the reference's mean; `tolerated`: by how much it may be."""

    name: str
    value: float
    mean: float
    worse: float
    tolerated: float

    @property
    def is_bad(self) -> bool:
        return self.worse > self.tolerated


@dataclass(slots=True)
class _Task:
    """What is known of one task.

    Attributes:
        reference: (auc, log_loss, log_calibration) of earlier blocks.
        held: the same of the last blocks, each bad in some number, as far as each number counts if they were accidents.
        bad: the values of the last blocks in a row that were bad in one number, by its name.
        words: of each held block a number that was bad, for people.
    """

    reference: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=_MAX_REFERENCE))
    held: list[tuple[float, float, float]] = field(default_factory=list)
    bad: dict[str, list[float]] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)


class QualityGate:
    """Remembers how good the model was, and refuses when it is not any more.

    Attributes:
        refusal: why nothing may be published, in one line; empty when it may. It stays until `forget`.
    """

    def __init__(self, limits: QualityLimits) -> None:
        self.refusal = ""
        self._limits = limits
        self._tasks: dict[str, _Task] = {}

    def judge(self, block: Block) -> None:
        """Compare the block with those before it, and take it in."""
        if self.refusal:
            return
        task = self._tasks.setdefault(block.task, _Task())
        values = (block.auc, block.log_loss, block.log_calibration)
        if not all(math.isfinite(value) for value in values):
            self.refusal = f"task {block.task!r}: scores are NaN, infinite or all zero"
            return
        measures = self._measures(task, block) if len(task.reference) >= _MIN_REFERENCE else []
        task.bad = {one.name: [*task.bad.get(one.name, []), one.value] for one in measures if one.is_bad}
        if not task.bad:
            task.reference.extend([*task.held, values])
            task.held, task.words = [], []
            return
        task.held.append(_as_accident(values, measures))
        task.words.append(next(f"{one.name} {one.value:.3g} instead of {one.mean:.3g}" for one in measures if one.is_bad))
        for measure in measures:
            if len(task.bad.get(measure.name, ())) >= _BAD_IN_A_ROW:
                self.refusal = _in_words(block, measure, task.bad[measure.name], len(task.reference))
                return
        if len(task.held) >= _BAD_IN_ANY:
            self.refusal = (
                f"task {block.task!r}: each of the last {len(task.held)} blocks of matured labels is bad in one number "
                f"({'; '.join(task.words)}); roll back, or resume learning to accept it"
            )

    def forget(self) -> None:
        """Lift the refusal and begin a new reference: whoever resumes learning takes the quality as it is now."""
        self.refusal = ""
        self._tasks.clear()

    def state_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the reference, for a checkpoint: `quality/TASK` float64 [blocks, 3]."""
        return {f"{_PREFIX}{name}": np.asarray(task.reference, np.float64).reshape(-1, 3) for name, task in self._tasks.items()}

    def load_state_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on with the reference of a checkpoint; one that has none begins anew."""
        self.forget()
        for name, rows in arrays.items():
            if name.startswith(_PREFIX) and rows.ndim == 2 and rows.shape[1] == 3:
                task = self._tasks[name.removeprefix(_PREFIX)] = _Task()
                task.reference.extend((float(auc), float(log_loss), float(calibration)) for auc, log_loss, calibration in rows)

    def _measures(self, task: _Task, block: Block) -> list[_Measure]:
        limits = self._limits
        known_R3 = np.asarray(task.reference)
        # Of a further block around the mean of R: the mean itself is uncertain too.
        auc_sd, loss_sd, calibration_sd = (known_R3.std(axis=0, ddof=1) * math.sqrt(1.0 + 1.0 / len(known_R3))).tolist()
        auc, loss, calibration = known_R3.mean(axis=0).tolist()
        away = abs(block.log_calibration) - abs(calibration)
        tolerated = (
            max(limits.auc_drop, _DEVIATIONS * auc_sd),
            max(limits.log_loss_rise, _DEVIATIONS * loss_sd),
            max(math.log(limits.calibration_factor), _DEVIATIONS * calibration_sd),
        )
        return [
            _Measure("AUC", block.auc, auc, auc - block.auc, tolerated[0]),
            _Measure("log-loss over a constant guess's", block.log_loss, loss, block.log_loss - loss, tolerated[1]),
            _Measure("calibration", math.exp(block.log_calibration), math.exp(calibration), away, tolerated[2]),
        ]


def _as_accident(values: tuple[float, float, float], measures: Sequence[_Measure]) -> tuple[float, float, float]:
    """Return the numbers of a block, but none further away than is tolerated: one accident must not blind the gate to the next harm."""
    excess = [max(one.worse - one.tolerated, 0.0) for one in measures]
    auc, log_loss, log_calibration = values
    return auc + excess[0], log_loss - excess[1], math.copysign(abs(log_calibration) - excess[2], log_calibration)


def _in_words(block: Block, measure: _Measure, values: list[float], num_reference: int) -> str:
    seen = " and ".join(f"{value:.3g}" for value in values[-_BAD_IN_A_ROW:])
    return (
        f"task {block.task!r}: {measure.name} {seen} in the last {_BAD_IN_A_ROW} blocks of matured labels, {measure.mean:.3g} in the "
        f"{num_reference} before; roll back, or resume learning to accept it"
    )
