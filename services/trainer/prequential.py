"""Quality of scores made before their samples were learned, over the latest labels of each task. numpy only; no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]

_SMALLEST_PROBABILITY = 1e-7
# Batches that wait before they are put into the window: one concatenation for many.
_MAX_FRESH = 256


class TaskQuality(NamedTuple):
    """How good scores were.

    Attributes:
        num_samples: labels that the numbers below are taken over.
        auc: area under the ROC curve; NaN while one class is missing.
        log_loss: mean, natural logarithm.
        calibration: sum of predictions over number of positives, 1 is right; NaN without positives.
    """

    num_samples: int
    auc: float
    log_loss: float
    calibration: float


class PrequentialWindow:
    """The latest (label, probability) pairs of each task. Probabilities are those of the thinned samples, as they were trained on."""

    def __init__(self, tasks: Sequence[str], num_samples: int) -> None:
        """Remember `num_samples` labels per task."""
        self._tasks = tuple(tasks)
        self._limit = num_samples
        self._pairs_2N = {task: np.empty((2, 0), dtype=np.float32) for task in self._tasks}
        self._fresh: dict[str, list[Float32Array]] = {task: [] for task in self._tasks}

    def add(self, probabilities_BT: Float32Array, ones_BT: Float32Array, zeros_BT: Float32Array) -> None:
        """Take scores and the weights of both labels; samples without a label, or that take one back, do not count."""
        for column, task in enumerate(self._tasks):
            ones_B, zeros_B = ones_BT[:, column], zeros_BT[:, column]
            labelled_B = (ones_B + zeros_B > 0) & (zeros_B >= 0)
            if labelled_B.any():
                is_one_B = ones_B[labelled_B] > zeros_B[labelled_B]
                self._fresh[task].append(np.stack([is_one_B.astype(np.float32), probabilities_BT[labelled_B, column]]))
                if len(self._fresh[task]) >= _MAX_FRESH:
                    self._settle(task)

    def quality(self) -> Mapping[str, TaskQuality]:
        """Return the quality by task; tasks without labels so far are absent."""
        for task in self._tasks:
            self._settle(task)
        return {task: _quality(*pairs_2N.astype(np.float64)) for task, pairs_2N in self._pairs_2N.items() if pairs_2N.size}

    def _settle(self, task: str) -> None:
        self._pairs_2N[task] = np.concatenate([self._pairs_2N[task], *self._fresh[task]], axis=1)[:, -self._limit :]
        self._fresh[task].clear()


def _quality(labels_N: npt.NDArray[np.float64], probabilities_N: npt.NDArray[np.float64]) -> TaskQuality:
    positives = labels_N.sum()
    calibration = float(probabilities_N.sum() / positives) if positives else float("nan")
    return TaskQuality(len(labels_N), area_under_roc(labels_N, probabilities_N), mean_log_loss(labels_N, probabilities_N), calibration)


def mean_log_loss(labels_N: npt.NDArray[np.float64], probabilities_N: npt.NDArray[np.float64]) -> float:
    """Return the mean log-loss, natural logarithm; probabilities of 0 and 1 count as 1e-7 away from there."""
    clipped_N = np.clip(probabilities_N, _SMALLEST_PROBABILITY, 1.0 - _SMALLEST_PROBABILITY)
    return float(-(labels_N * np.log(clipped_N) + (1.0 - labels_N) * np.log1p(-clipped_N)).mean())


def area_under_roc(labels_N: npt.NDArray[np.float64], scores_N: npt.NDArray[np.float64]) -> float:
    """Return the area under the ROC curve from mean ranks; NaN when a class is missing."""
    _, rank_of, counts = np.unique(scores_N, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2.0
    positives = labels_N.sum()
    negatives = len(labels_N) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    rank_sum = mean_ranks[rank_of][labels_N > 0].sum()
    return float((rank_sum - positives * (positives + 1) / 2.0) / (positives * negatives))
