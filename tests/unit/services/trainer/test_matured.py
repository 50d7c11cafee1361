"""Labels that count once they are mature, in blocks that are cut as they fill up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from services.common.ranker.features import Features
from services.trainer.group_columns import GroupColumns, Meaning
from services.trainer.matured import Block, BlockSize, MaturedLabels
from services.trainer.prequential import PrequentialWindow

TASKS, UNANSWERED = ("interact", "like"), (True, False)
NO_FEATURES = Features(0, np.empty(0, np.int64), np.empty(0, np.float16), np.empty(0, np.float16), np.empty((0, 0), np.float16))
ANY = BlockSize(min_ms=0, min_positives=1, min_negatives=1)


def said(request: str, at_ms: int, samples: Sequence[tuple[str, int, Mapping[str, float]]], tasks: Sequence[str] = TASKS) -> GroupColumns:
    """Return a group of (item, revision, labels) samples; what else a group has, nobody looks at here."""
    labels = [tuple(given.get(task, math.nan) for task in tasks) for _, _, given in samples]
    return GroupColumns(
        request_id=request,
        exposed_at_ms=at_ms,
        exposure_offset=0,
        features=NO_FEATURES,
        sample_ids=[0] * len(samples),
        item_ids=[item_id for item_id, _, _ in samples],
        revisions=[revision for _, revision, _ in samples],
        accepted_at_ms=[0] * len(samples),
        meanings=[Meaning((0.0,) * 2 * len(tasks) + labels_T, True) for labels_T in labels],
    )


def answer(request: str, at_ms: int, item_id: str, *, revision: int = 1, tasks: Sequence[str] = TASKS, **labels: float) -> GroupColumns:
    return said(request, at_ms, [(item_id, revision, labels)], tasks)


def closing(request: str, at_ms: int, *item_ids: str) -> GroupColumns:
    return said(request, at_ms, [(item_id, 0, {"interact": 0.0}) for item_id in item_ids])


def scores(*interact: float, like: float = 0.5) -> np.ndarray:
    return np.asarray([[one, like] for one in interact], np.float32)


def by_task(blocks: Sequence[Block]) -> Mapping[str, Block]:
    return {block.task: block for block in blocks}


def test_an_answer_counts_once_the_window_of_its_request_is_closed() -> None:
    labels = MaturedLabels(TASKS, UNANSWERED, ANY)
    assert labels.add([answer("b", 20, "1", interact=1.0)], scores(0.8)) == []
    assert labels.add([closing("a", 10, "2", "3")], scores(0.2, 0.4)) == []  # of an earlier exposure
    block = by_task(labels.add([closing("b", 20, "4")], scores(0.1)))["interact"]
    assert (block.num_positives, block.num_negatives, block.auc) == (1, 3, 1.0)
    assert block.log_calibration == pytest.approx(math.log(1.5), rel=1e-5)
    loss = -(math.log(0.8) + math.log(0.8) + math.log(0.6) + math.log(0.9)) / 4
    guess = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert block.log_loss == pytest.approx(loss / guess, rel=1e-5)


def test_an_item_counts_once_with_its_first_score_and_its_last_labels() -> None:
    labels = MaturedLabels(TASKS, UNANSWERED, ANY)
    labels.add([answer("a", 10, "1", interact=1.0)], scores(0.9, like=0.7))
    labels.add([answer("a", 10, "1", revision=2, interact=1.0, like=1.0)], scores(0.99, like=0.99))
    labels.add([answer("a", 10, "1", revision=3, interact=1.0, like=0.0)], scores(0.99, like=0.99))
    labels.add([answer("a", 10, "2", interact=1.0, like=1.0)], scores(0.9, like=0.3))
    blocks = by_task(labels.add([closing("a", 10, "3")], scores(0.9)))
    assert (blocks["interact"].num_positives, blocks["interact"].num_negatives) == (2, 1)
    assert (blocks["like"].num_positives, blocks["like"].num_negatives, blocks["like"].auc) == (1, 1, 0.0)
    assert blocks["like"].log_calibration == pytest.approx(0.0, abs=1e-6)  # .7 + .3 of one


def test_what_comes_after_the_window_is_left_out() -> None:
    labels = MaturedLabels(TASKS, UNANSWERED, ANY)
    labels.add([closing("a", 10, "1")], scores(0.2))
    both = said("a", 10, [("2", 0, {"interact": 0.0}), ("2", 1, {"interact": 1.0})])
    assert labels.add([answer("a", 10, "1", interact=1.0)], scores(0.9)) == []
    assert labels.add([both], scores(0.2, 0.9)) == []
    block = by_task(labels.add([answer("b", 20, "1", interact=1.0), closing("b", 20, "3")], scores(0.9, 0.1)))["interact"]
    assert (block.num_positives, block.num_negatives) == (1, 3)


def test_a_block_is_cut_when_it_is_long_enough_in_time_and_in_labels_of_both_kinds() -> None:
    labels = MaturedLabels(TASKS, UNANSWERED, BlockSize(min_ms=1_000, min_positives=3, min_negatives=5))
    cut_at = []
    for request in range(1, 41):
        at_ms = 100 * request
        groups = [answer(str(request), at_ms, "1", interact=1.0)] if request > 20 else []
        groups.append(closing(str(request), at_ms, "2"))
        if labels.add(groups, scores(*[0.5] * len(groups))):
            cut_at.append(request)
    # 3 positives are there at 23; then 10 more requests make a second.
    assert cut_at == [23, 33]


def test_a_spec_without_negatives_takes_answers_as_they_come() -> None:
    labels = MaturedLabels(("like",), (False,), ANY)
    labels.add([answer("a", 10, "1", tasks=("like",), like=1.0)], np.asarray([[0.8]], np.float32))
    blocks = labels.add([answer("b", 11, "1", tasks=("like",), like=0.0)], np.asarray([[0.2]], np.float32))
    assert [(block.num_positives, block.num_negatives, block.auc) for block in blocks] == [(1, 1, 1.0)]


def test_answers_of_windows_that_never_close_wait_within_a_bound() -> None:
    labels = MaturedLabels(TASKS, UNANSWERED, BlockSize(max_waiting=50))
    for request in range(500):
        labels.add([answer(str(request), 1_000 + request, "1", interact=1.0)], scores(0.5))
        assert labels.num_waiting <= 50
    assert labels.num_waiting == 50


def test_traffic_that_grows_does_not_look_like_a_loss_of_calibration() -> None:
    """Every request has one answer at once and one negative a minute later, and is scored rightly; requests double every 15 seconds."""
    matured, latest = (
        MaturedLabels(TASKS, UNANSWERED, BlockSize(min_ms=5_000, min_positives=10, min_negatives=10)),
        PrequentialWindow(TASKS, 500),
    )
    events = []
    for second in range(100):
        for request in range(int(2 ** (second / 15))):
            name, at_ms = f"{second}-{request}", second * 1_000 + 1
            events += [(at_ms, answer(name, at_ms, "1", interact=1.0)), (at_ms + 60_000, closing(name, at_ms, "2"))]
    events = sorted((event for event in events if event[0] < 100_000), key=lambda event: event[0])
    blocks = []
    for _, group in events:
        positive = float(group.revisions[0] > 0)
        latest.add(scores(0.5), np.asarray([[positive, 0]], np.float32), np.asarray([[1 - positive, 0]], np.float32))
        blocks += [block for block in matured.add([group], scores(0.5)) if block.task == "interact"]
    assert len(blocks) > 3
    assert all(math.exp(block.log_calibration) == pytest.approx(1.0, abs=0.1) for block in blocks)
    assert latest.quality()["interact"].calibration < 0.6  # what the gate would have seen in the latest labels
