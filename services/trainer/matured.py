"""Quality of scores over labels that will not change any more: what the publish gate may judge by. numpy only; no I/O, no clock.

A positive is known as soon as somebody answers, a negative only when its label window closes. So the labels of the last minute are
mostly positives, and more so the faster traffic grows: quality taken over them says more about traffic than about the model. What counts:

- Of a task whose unanswered items are negatives, an exposure counts whole or not at all. Its items count when its window closes, in one
  block, each once: with the score from before anything of it was learned, and with the labels that it has then. An exposure counts when
  all of it comes to this process: it is newer than the first watermark that its partition gives here, so nobody had answered it before the
  start or behind the samples that a rollback passed over; and its window closes in its turn, so its answers are not taken for late ones.
- Of any other task, each answer counts by itself, with the first label that it says for an item. It needs no window.

No setting says how long the window is. The joiner closes the windows of a partition in the order of their exposures, so the newest exposure
whose negatives have come tells how far the labels of its partition are mature. Another partition may be minutes behind.

Nothing of this is in a checkpoint: what the process before saw of an exposure is not known here, so the first block after a start comes one
window later. What waits is bounded; see `BlockSize`.

Shapes: B samples, T tasks.
"""

from __future__ import annotations

import heapq
import math
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.trainer.group_columns import GroupColumns
from services.trainer.prequential import area_under_roc, mean_log_loss

_DROPPED_AT_ONCE = 10  # a tenth of a block


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSize:
    """When a task's labels are enough to be judged: all minima hold, so that a busy mesh is not judged more often than a quiet one."""

    min_ms: int = 30_000
    """Time of the stream, by its watermark, from the first label to the last."""
    min_positives: int = 100
    min_negatives: int = 100
    max_labels: int = 500_000
    """Labels of one task, 5 bytes each. Beyond it the oldest go, a tenth at a time: while one class is missing, a block never ends."""
    max_waiting: int = 200_000
    """Answers that wait for their window, some hundred bytes each. Beyond it every other exposure, by a hash of its request, does not count
    until the next start; beyond that again, three of four; and so on."""


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
class _Partition:
    """How far one partition is.

    Attributes:
        begun_at_ms: its watermark when this process began with it.
        since_ms: newer exposures come here whole; None until a watermark says so.
        mature_ms: windows of exposures up to here are closed.
        order: heap of waiting answers by the time of their exposure.
    """

    begun_at_ms: int
    since_ms: int | None = None
    mature_ms: int = 0
    order: list[tuple[int, tuple[str, str]]] = field(default_factory=list)


@dataclass(slots=True)
class _Column:
    """Labels of one task that count, and their scores, since the last block."""

    since_ms: int
    num_positives: int = 0
    labels: array[int] = field(default_factory=lambda: array("b"))
    scores: array[float] = field(default_factory=lambda: array("f"))


class MaturedLabels:
    """Collects the scores of what is learned, and cuts them into blocks as their labels mature."""

    def __init__(self, tasks: Sequence[str], unanswered: Sequence[bool], size: BlockSize | None = None, *, known_until_ms: int = 0) -> None:
        """Nothing counts before the watermark of a partition moves.

        Args:
            tasks: names.
            unanswered: by task, whether an item without an answer is a negative.
            size: of blocks.
            known_until_ms: the newest watermark that the learner had before. Where samples are read again, those that it knows are missing
                among them, so exposures up to then do not count, whatever the watermark says.
        """
        self._tasks = tuple(tasks)
        self._by_exposure = [index for index, is_negative in enumerate(unanswered) if is_negative]
        self._by_answer = [index for index, is_negative in enumerate(unanswered) if not is_negative]
        self._size = size or BlockSize()
        self._known_until_ms = known_until_ms
        self._columns: list[_Column | None] = [None for _ in self._tasks]
        self._partitions: dict[int, _Partition] = {}
        self._waiting: dict[tuple[str, str], _Answered] = {}
        self._sampled_bits = 0  # exposures count whose hash has so many zeros at its end
        self._now_ms = 0

    @property
    def num_waiting(self) -> int:
        """Answers whose window has not closed yet."""
        return len(self._waiting)

    @property
    def num_labels(self) -> int:
        """Labels in blocks that are not full yet, of all tasks."""
        return sum(len(column.labels) for column in self._columns if column is not None)

    def add(
        self, groups: Sequence[GroupColumns], scores_BT: npt.NDArray[np.float32], *, partition: int = 0, watermark_ms: int
    ) -> list[Block]:
        """Take what is being learned; return the blocks that are full.

        Args:
            groups: of one partition, with B samples in all.
            scores_BT: probabilities from before they were learned, of the thinned samples.
            partition: its number.
            watermark_ms: of its last tick before the groups: answers given up to then stand before them. 0: there was none yet.
        """
        place = self._partitions.setdefault(partition, _Partition(watermark_ms))
        if place.since_ms is None and watermark_ms > place.begun_at_ms:
            place.since_ms = max(watermark_ms, self._known_until_ms)
        self._now_ms = max(self._now_ms, watermark_ms)
        row = 0
        for group in groups:
            end = row + len(group)
            if place.since_ms is not None:
                self._take(place, place.since_ms, group, scores_BT[row:end])
            row = end
        self._settle(place)
        return [block for index in range(len(self._tasks)) if (block := self._cut(index)) is not None]

    def _take(self, place: _Partition, since_ms: int, group: GroupColumns, scores_NT: npt.NDArray[np.float32]) -> None:
        exposed_at_ms = group.exposed_at_ms
        is_whole = bool(self._by_exposure) and exposed_at_ms > since_ms and _is_sampled(group.request_id, self._sampled_bits)
        unanswered = [row for row, revision in enumerate(group.revisions) if revision == 0]
        if len(unanswered) < len(group):
            self._take_answers(place, group, scores_NT, may_wait=is_whole and exposed_at_ms > place.mature_ms)
        if is_whole and unanswered and exposed_at_ms >= place.mature_ms:
            for index in self._by_exposure:
                self._count(index, False, scores_NT[unanswered])
        if len(unanswered) == len(group):
            place.mature_ms = max(place.mature_ms, exposed_at_ms)

    def _take_answers(self, place: _Partition, group: GroupColumns, scores_NT: npt.NDArray[np.float32], *, may_wait: bool) -> None:
        unanswered = {item_id for item_id, revision in zip(group.item_ids, group.revisions, strict=True) if revision == 0}
        for row, (item_id, revision, meaning) in enumerate(zip(group.item_ids, group.revisions, group.meanings, strict=True)):
            if revision == 0:
                continue
            for index in self._by_answer:
                if meaning.first_T[index]:
                    self._count(index, meaning.labels_T[index] > 0.5, scores_NT[row : row + 1])
            if may_wait and item_id not in unanswered:
                self._wait(place, group, row, scores_NT[row])

    def _wait(self, place: _Partition, group: GroupColumns, row: int, scores_T: npt.NDArray[np.float32]) -> None:
        key = (group.request_id, group.item_ids[row])
        answered = self._waiting.get(key)
        if answered is None:
            answered = self._waiting[key] = _Answered(scores_T, [math.nan] * len(self._tasks))
            heapq.heappush(place.order, (group.exposed_at_ms, key))
        for index, label in enumerate(group.meanings[row].labels_T):
            if not math.isnan(label):
                answered.labels_T[index] = label
        while len(self._waiting) > self._size.max_waiting:
            self._sample_half()

    def _sample_half(self) -> None:
        """Let go of half of the exposures, whole: what comes of them does not count either."""
        self._sampled_bits += 1
        self._waiting = {key: answered for key, answered in self._waiting.items() if _is_sampled(key[0], self._sampled_bits)}
        for place in self._partitions.values():
            place.order = [entry for entry in place.order if entry[1] in self._waiting]
            heapq.heapify(place.order)

    def _settle(self, place: _Partition) -> None:
        while place.order and place.order[0][0] <= place.mature_ms:
            answered = self._waiting.pop(heapq.heappop(place.order)[1])
            for index in self._by_exposure:
                label = answered.labels_T[index]
                if not math.isnan(label):
                    self._count(index, label > 0.5, answered.scores_T[None])

    def _count(self, index: int, is_positive: bool, scores_NT: npt.NDArray[np.float32]) -> None:
        column = self._columns[index]
        if column is None:
            column = self._columns[index] = _Column(self._now_ms)
        column.labels.extend([is_positive] * len(scores_NT))
        column.scores.extend(scores_NT[:, index].tolist())
        column.num_positives += is_positive * len(scores_NT)
        while len(column.labels) > self._size.max_labels:
            oldest = column.labels[: max(self._size.max_labels // _DROPPED_AT_ONCE, 1)]
            column.num_positives -= sum(oldest)
            del column.labels[: len(oldest)], column.scores[: len(oldest)]

    def _cut(self, index: int) -> Block | None:
        column, size = self._columns[index], self._size
        if column is None or self._now_ms - column.since_ms < size.min_ms:
            return None
        if column.num_positives < size.min_positives or len(column.labels) - column.num_positives < size.min_negatives:
            return None
        self._columns[index] = _Column(self._now_ms)
        return quality_of_block(self._tasks[index], np.asarray(column.labels, np.float64), np.asarray(column.scores, np.float64))


def _is_sampled(request_id: str, bits: int) -> bool:
    return bits == 0 or zlib.crc32(request_id.encode()) & ((1 << bits) - 1) == 0


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
