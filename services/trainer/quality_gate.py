"""The part of the publish gate that judges quality: refuses to publish when scores have become worse than they were. Pure.

A block (services/trainer/matured.py) is compared with the blocks before it, task by task, in three numbers: AUC, log-loss, calibration.
It is bad in one of them when it is worse than their mean both by what matters (`QualityLimits`) and by more than chance explains
(`_DEVIATIONS` standard deviations of those blocks, which contain whatever the stream does from minute to minute). Two blocks in a row that
are bad in the same number are refused; one alone is an accident, and joins the others. Whatever becomes better passes.

Error rates, of this very code with the default limits. False alarms on simulated clean streams whose share of positives wanders and
whose users have heavy tails (`python tests/quality_streams.py 1000`): 0 of 1,000 hours of one task, each judged 120 times, so below 0.6 %
an hour for two tasks (95 %). None either in 60,000 events of MovieLens through the learner (600 blocks of interact, 256 of like).
Refused, of 50 harmed streams each:

| harm to the simulated stream | refused | harm to the learner, MovieLens from event 25,000 on | refused |
|---|---|---|---|
| all, or half of the items get another item's score | 50 | rates of 0.1 (network) and 2 (rows): divergence | after 2 blocks |
| a quarter does | 16 | half of the likes turned round | after 2 blocks |
| 10 %, 5 %, 2 % of the labels turned round | 50, 13, 0 | half of the answers are of bots that choose at random | after 2 blocks |
| 3 of 4, half of the answers lost | 50, 47 | 3 of 4 answers lost | no |
| logits doubled, four times as large | 50, 50 | all features zero | in blocks of 100 positives, not of 400 |

The last two: a learner follows its labels within a block, so a loss of answers costs it no calibration, and without features it soon
does as well as it can.

A block lasts 30 s or more, so a refusal comes 1 to 2.5 minutes after the harm: two blocks, and the window of the last labels.
What it does not see: a loss below the limits; one that comes more slowly than the reference moves (20 minutes to hours); what happens
before `_MIN_REFERENCE` blocks are there, after a start without a checkpoint or after `forget`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from services.trainer.matured import Block

_MAX_REFERENCE = 40
_MIN_REFERENCE = 20
_DEVIATIONS = 4.0
_BAD_IN_A_ROW = 2
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
    """One number of a block. `worse`: by how much the block is worse than the reference's mean."""

    name: str
    value: float
    mean: float
    worse: float
    limit: float
    deviation: float


@dataclass(slots=True)
class _Task:
    """`reference`: (auc, log_loss, log_calibration) of earlier blocks; `bad`: how many blocks in a row were bad, by measure."""

    reference: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=_MAX_REFERENCE))
    held: list[tuple[float, float, float]] = field(default_factory=list)
    bad: dict[str, list[float]] = field(default_factory=dict)


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
        task.bad = {one.name: [*task.bad.get(one.name, []), one.value] for one in measures if _is_bad(one)}
        if not task.bad:
            task.reference.extend([*task.held, values])
            task.held = []
            return
        task.held.append(values)
        for measure in measures:
            if len(task.bad.get(measure.name, ())) >= _BAD_IN_A_ROW:
                self.refusal = _in_words(block, measure, task.bad[measure.name], len(task.reference))
                return

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
        return [
            _Measure("AUC", block.auc, auc, auc - block.auc, limits.auc_drop, auc_sd),
            _Measure("log-loss over a constant guess's", block.log_loss, loss, block.log_loss - loss, limits.log_loss_rise, loss_sd),
            _Measure(
                "calibration",
                math.exp(block.log_calibration),
                math.exp(calibration),
                away,
                math.log(limits.calibration_factor),
                calibration_sd,
            ),
        ]


def _is_bad(measure: _Measure) -> bool:
    return measure.worse > max(measure.limit, _DEVIATIONS * measure.deviation)


def _in_words(block: Block, measure: _Measure, values: list[float], num_reference: int) -> str:
    seen = " and ".join(f"{value:.3g}" for value in values[-_BAD_IN_A_ROW:])
    return (
        f"task {block.task!r}: {measure.name} {seen} in the last {_BAD_IN_A_ROW} blocks of matured labels, {measure.mean:.3g} in the "
        f"{num_reference} before; roll back, or resume learning to accept it"
    )
