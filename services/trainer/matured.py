"""Quality of scores over labels that will not change any more: what the publish gate may judge by. numpy only; no I/O, no clock.

A positive is known as soon as somebody answers, a negative only when its label window closes. So the labels of the last minute are
mostly positives, and more so the faster traffic grows: quality taken over them says more about traffic than about the model. Here an
answer waits until the window of its request is closed, and every item counts once: with the score from before anything of it was learned,
and with the labels that it has when its window closes. What comes later is left out.

No setting says how long the window is. The joiner closes windows in the order of their exposures, so the newest exposure whose negatives
have come tells how far labels are mature. Partitions close within a tick of each other; an answer in that tick may be left out as late.

Shapes: B samples, T tasks.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.trainer.group_columns import GroupColumns
from services.trainer.prequential import area_under_roc, mean_log_loss

# Labels of one block of one task.
_MAX_LABELS = 500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSize:
    """When a task's labels are enough to be judged: all minima hold, so that a busy mesh is not judged more often than a quiet one."""

    min_ms: int = 30_000
    """Time between the first and the last exposure."""
    min_positives: int = 100
    min_negatives: int = 100
    max_waiting: int = 200_000
    """Answers that wait for their window, some hundred bytes each; beyond, the oldest count as mature."""


class Block(NamedTuple):
    """How good the scores of one task were over one stretch of the stream.

    Attributes:
        task: name.
        num_positives, num_negatives: labels in it.
        auc: area under the ROC curve.
        log_loss: mean log-loss over that of a constant guess of the block's share of positives: 1 is no better than the guess.
            Source: He et al. 2014, normalized entropy.
        log_calibration: logarithm of (sum of predictions / positives): 0 is right.
    """

    task: str
    num_positives: int
    num_negatives: int
    auc: float
    log_loss: float
    log_calibration: float


@dataclass(slots=True)
class _Answered:
    """An item that somebody answered: its first score, and its newest labels (NaN: none) by task."""

    scores_T: npt.NDArray[np.float32]
    labels_T: list[float]


@dataclass(slots=True)
class _Column:
    """Mature labels of one task, and their scores, since the last block."""

    since_ms: int = 0
    num_positives: int = 0
    labels: list[bool] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


class MaturedLabels:
    """Collects the scores of what is learned, and cuts them into blocks as their labels mature."""

    def __init__(self, tasks: Sequence[str], unanswered: Sequence[bool], size: BlockSize | None = None) -> None:
        """`unanswered`: by task, whether an item without an answer is a negative."""
        self._tasks = tuple(tasks)
        self._negative_for = [index for index, is_negative in enumerate(unanswered) if is_negative]
        self._size = size or BlockSize()
        self._columns = [_Column() for _ in self._tasks]
        self._waiting: dict[tuple[str, str], _Answered] = {}
        self._order: list[tuple[int, tuple[str, str]]] = []  # heap by time of exposure
        self._mature_ms = 0

    @property
    def num_waiting(self) -> int:
        """Answers whose window has not closed yet."""
        return len(self._waiting)

    def add(self, groups: Sequence[GroupColumns], scores_BT: npt.NDArray[np.float32]) -> list[Block]:
        """Take what is being learned; return the blocks that are full.

        Args:
            groups: with B samples in all.
            scores_BT: probabilities from before they were learned, of the thinned samples.
        """
        row = 0
        for group in groups:
            end = row + len(group)
            if any(group.revisions):
                self._add_answers(group, scores_BT[row:end])
            else:
                self._count_negatives(scores_BT[row:end])
            if not any(group.revisions) or not self._negative_for:
                self._mature_ms = max(self._mature_ms, group.exposed_at_ms)
            row = end
        self._settle()
        return [block for index in range(len(self._tasks)) if (block := self._cut(index)) is not None]

    def _add_answers(self, group: GroupColumns, scores_NT: npt.NDArray[np.float32]) -> None:
        unanswered = {item_id for item_id, revision in zip(group.item_ids, group.revisions, strict=True) if revision == 0}
        for row, revision in enumerate(group.revisions):
            if revision == 0:
                self._count_negatives(scores_NT[row : row + 1])
            elif group.item_ids[row] not in unanswered:
                self._wait(group, row, scores_NT[row])

    def _wait(self, group: GroupColumns, row: int, scores_T: npt.NDArray[np.float32]) -> None:
        if group.exposed_at_ms <= self._mature_ms:
            return  # late: the item has counted as a negative
        key = (group.request_id, group.item_ids[row])
        answered = self._waiting.get(key)
        if answered is None:
            answered = self._waiting[key] = _Answered(scores_T, [math.nan] * len(self._tasks))
            heapq.heappush(self._order, (group.exposed_at_ms, key))
        for index, label in enumerate(group.meanings[row].labels_T):
            if not math.isnan(label):
                answered.labels_T[index] = label

    def _settle(self) -> None:
        while self._order and (self._order[0][0] <= self._mature_ms or len(self._order) > self._size.max_waiting):
            answered = self._waiting.pop(heapq.heappop(self._order)[1])
            self._count(answered.scores_T, answered.labels_T)

    def _count_negatives(self, scores_NT: npt.NDArray[np.float32]) -> None:
        for index in self._negative_for:
            column = self._columns[index]
            column.labels += [False] * len(scores_NT)
            column.scores += scores_NT[:, index].tolist()

    def _count(self, scores_T: npt.NDArray[np.float32], labels_T: Sequence[float]) -> None:
        for column, score, label in zip(self._columns, scores_T.tolist(), labels_T, strict=True):
            if math.isnan(label):
                continue
            column.labels.append(label > 0.5)
            column.scores.append(score)
            column.num_positives += label > 0.5

    def _cut(self, index: int) -> Block | None:
        column, size = self._columns[index], self._size
        column.since_ms = column.since_ms or self._mature_ms
        num_negatives = len(column.labels) - column.num_positives
        is_long = self._mature_ms - column.since_ms >= size.min_ms or len(column.labels) >= _MAX_LABELS
        if not is_long or column.num_positives < size.min_positives or num_negatives < size.min_negatives:
            return None
        self._columns[index] = _Column(since_ms=self._mature_ms)
        return quality_of_block(self._tasks[index], np.asarray(column.labels, np.float64), np.asarray(column.scores, np.float64))


def quality_of_block(task: str, labels_N: npt.NDArray[np.float64], scores_N: npt.NDArray[np.float64]) -> Block:
    """Return the quality of scores [N] over labels [N] of 0 and 1, both of which occur."""
    positives = float(labels_N.sum())
    share = positives / len(labels_N)
    guess = -(share * math.log(share) + (1.0 - share) * math.log1p(-share))
    predicted = float(scores_N.sum())
    return Block(
        task=task,
        num_positives=int(positives),
        num_negatives=len(labels_N) - int(positives),
        auc=area_under_roc(labels_N, scores_N),
        log_loss=mean_log_loss(labels_N, scores_N) / guess,
        log_calibration=math.log(predicted / positives) if predicted > 0 else (-math.inf if predicted == 0 else math.nan),
    )
