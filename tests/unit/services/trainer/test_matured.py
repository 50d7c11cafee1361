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


def said(request: str, at_ms: int, samples: Sequence[tuple[str, int, Mapping[str, float]]], known: Sequence[str] = ()) -> GroupColumns:
    """Return a group of (item, revision, labels) samples; of `known` tasks feedback has said a label before."""
    labels = [tuple(given.get(task, math.nan) for task in TASKS) for _, _, given in samples]
    first = [tuple(revision > 0 and task in given and task not in known for task in TASKS) for _, revision, given in samples]
    return GroupColumns(
        request_id=request,
        exposed_at_ms=at_ms,
        exposure_offset=0,
        features=NO_FEATURES,
        sample_ids=[0] * len(samples),
        item_ids=[item_id for item_id, _, _ in samples],
        revisions=[revision for _, revision, _ in samples],
        accepted_at_ms=[0] * len(samples),
        positions=[0] * len(samples),
        meanings=[Meaning((0.0,) * 2 * len(TASKS) + labels_T, True, first_T) for labels_T, first_T in zip(labels, first, strict=True)],
    )


def answer(request: str, at_ms: int, item_id: str, *, revision: int = 1, known: Sequence[str] = (), **labels: float) -> GroupColumns:
    return said(request, at_ms, [(item_id, revision, labels)], known)


def closing(request: str, at_ms: int, *item_ids: str) -> GroupColumns:
    return said(request, at_ms, [(item_id, 0, {"interact": 0.0}) for item_id in item_ids])


def scores(*interact: float, like: float = 0.5) -> np.ndarray:
    return np.asarray([[one, like] for one in interact], np.float32)


def by_task(blocks: Sequence[Block]) -> Mapping[str, Block]:
    return {block.task: block for block in blocks}


def began(size: BlockSize, unanswered: Sequence[bool] = UNANSWERED, *, partitions: int = 1) -> MaturedLabels:
    """Return what counts exposures from 2 ms on."""
    labels = MaturedLabels(TASKS, unanswered, size)
    for partition in range(partitions):
        for watermark_ms in (0, 1):
            labels.add([], np.empty((0, len(TASKS)), np.float32), partition=partition, watermark_ms=watermark_ms)
    return labels


def test_an_answer_counts_once_the_window_of_its_request_is_closed() -> None:
    labels = began(ANY)
    assert labels.add([answer("b", 20, "1", interact=1.0)], scores(0.8), watermark_ms=2) == []
    assert labels.add([closing("a", 10, "2", "3")], scores(0.2, 0.4), watermark_ms=2) == []  # of an earlier exposure
    block = by_task(labels.add([closing("b", 20, "4")], scores(0.1), watermark_ms=2))["interact"]
    assert (block.num_positives, block.num_negatives, block.auc) == (1, 3, 1.0)
    assert block.log_calibration == pytest.approx(math.log(1.5), rel=1e-5)
    loss = -(math.log(0.8) + math.log(0.8) + math.log(0.6) + math.log(0.9)) / 4
    guess = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert block.log_loss == pytest.approx(loss / guess, rel=1e-5)


def test_an_item_counts_once_with_its_first_score_and_with_the_labels_that_stand_when_its_window_closes() -> None:
    labels = began(ANY)
    labels.add([answer("a", 10, "1", interact=0.0)], scores(0.9), watermark_ms=2)
    labels.add([answer("a", 10, "1", revision=2, interact=1.0)], scores(0.99), watermark_ms=2)
    block = by_task(labels.add([closing("a", 10, "3")], scores(0.1), watermark_ms=2))["interact"]
    assert (block.num_positives, block.num_negatives, block.auc) == (1, 1, 1.0)
    assert block.log_calibration == pytest.approx(0.0, abs=1e-6)  # .9 + .1 of one


def test_without_negatives_of_the_unanswered_an_item_counts_by_the_first_label_that_is_said() -> None:
    labels = began(ANY)
    labels.add([answer("a", 10, "1", interact=1.0)], scores(0.9, like=0.1), watermark_ms=2)
    liked = answer("a", 10, "1", revision=2, known=["interact"], interact=1.0, like=1.0)
    labels.add([liked], scores(0.99, like=0.7), watermark_ms=2)
    changed = answer("a", 10, "1", revision=3, known=["interact", "like"], interact=1.0, like=0.0)
    assert labels.add([changed], scores(0.99, like=0.99), watermark_ms=2) == []
    block = by_task(labels.add([answer("a", 10, "2", interact=1.0, like=0.0)], scores(0.9, like=0.3), watermark_ms=2))["like"]
    assert (block.num_positives, block.num_negatives, block.auc) == (1, 1, 1.0)
    assert block.log_calibration == pytest.approx(0.0, abs=1e-6)  # .7 + .3 of one


def test_what_comes_after_the_window_is_left_out() -> None:
    labels = began(ANY)
    labels.add([closing("a", 10, "1")], scores(0.2), watermark_ms=2)
    both = said("a", 10, [("2", 0, {"interact": 0.0}), ("2", 1, {"interact": 1.0})])
    assert labels.add([answer("a", 10, "1", interact=1.0)], scores(0.9), watermark_ms=2) == []
    assert labels.add([both], scores(0.2, 0.9), watermark_ms=2) == []
    block = by_task(labels.add([answer("b", 20, "1", interact=1.0), closing("b", 20, "3")], scores(0.9, 0.1), watermark_ms=2))["interact"]
    assert (block.num_positives, block.num_negatives) == (1, 3)


def test_an_exposure_that_comes_behind_its_turn_counts_neither_by_its_answers_nor_by_its_negatives() -> None:
    labels = began(ANY)
    labels.add([closing("b", 20, "1")], scores(0.2), watermark_ms=2)
    assert labels.add([answer("a", 10, "2", interact=1.0), closing("a", 10, "3", "4")], scores(0.9, 0.1, 0.1), watermark_ms=2) == []
    block = by_task(labels.add([answer("c", 30, "1", interact=1.0), closing("c", 30, "3")], scores(0.9, 0.1), watermark_ms=2))["interact"]
    assert (block.num_positives, block.num_negatives) == (1, 2)


def test_exposures_that_may_have_been_answered_before_the_start_do_not_count() -> None:
    labels = MaturedLabels(TASKS, UNANSWERED, ANY)
    before = [answer("a", 10, "1", interact=1.0), answer("b", 900, "1", interact=1.0), closing("z", 1, "1")]
    assert labels.add(before, scores(0.9, 0.9, 0.1), watermark_ms=500) == []  # of the tick before the cut: they stand around it
    assert labels.add([closing("a", 10, "2"), answer("c", 1_001, "1", interact=1.0)], scores(0.1, 0.9), watermark_ms=1_000) == []
    assert labels.add([closing("b", 900, "2")], scores(0.1), watermark_ms=1_500) == []
    block = by_task(labels.add([closing("c", 1_001, "2", "3")], scores(0.1, 0.1), watermark_ms=2_000))["interact"]
    assert (block.num_positives, block.num_negatives) == (1, 2)


def test_where_samples_are_read_again_exposures_that_the_learner_knew_in_part_do_not_count() -> None:
    labels = MaturedLabels(TASKS, UNANSWERED, ANY, known_until_ms=1_000)
    for watermark_ms in (0, 500):  # far behind: the log is read from its oldest sample
        assert labels.add([closing("a", 900, "1", "2")], scores(0.1, 0.1), watermark_ms=watermark_ms) == []
    assert labels.add([answer("b", 1_001, "1", interact=1.0)], scores(0.9), watermark_ms=500) == []
    block = by_task(labels.add([closing("b", 1_001, "2")], scores(0.1), watermark_ms=500))["interact"]
    assert (block.num_positives, block.num_negatives) == (1, 1)


def test_a_partition_that_is_behind_is_not_late() -> None:
    labels = began(BlockSize(min_ms=0, min_positives=20, min_negatives=20), partitions=2)
    blocks: list[Block] = []
    for partition in (0, 1):  # the second one comes when the first one is far ahead
        for request in range(10):
            at_ms, name = 10 + request, f"{partition}-{request}"
            groups = [answer(name, at_ms, "1", interact=1.0), closing(name, at_ms, "2")]
            blocks += labels.add(groups, scores(0.5, 0.5), partition=partition, watermark_ms=100)
    assert [(block.num_positives, block.num_negatives) for block in blocks] == [(20, 20)]
    assert labels.num_waiting == 0


def test_a_block_is_cut_when_it_is_long_enough_in_time_and_in_labels_of_both_kinds() -> None:
    labels = began(BlockSize(min_ms=1_000, min_positives=3, min_negatives=5))
    cut_at = []
    for request in range(1, 41):
        at_ms = 100 * request
        groups = [answer(str(request), at_ms, "1", interact=1.0)] if request > 20 else []
        groups.append(closing(str(request), at_ms, "2"))
        if labels.add(groups, scores(*[0.5] * len(groups)), watermark_ms=at_ms):
            cut_at.append(request)
    # 3 positives are there at 23; then 10 more requests make a second.
    assert cut_at == [23, 33]


def test_a_spec_without_negatives_takes_all_answers_as_they_come_however_old_their_exposures() -> None:
    labels = began(BlockSize(min_ms=0, min_positives=1_000, min_negatives=1_000), unanswered=(False, False))
    rng = np.random.default_rng(0)
    blocks = []
    for request, at_ms in enumerate(rng.permutation(3_000).tolist()):
        group = answer(str(request), at_ms, "1", like=float(request % 2))
        blocks += labels.add([group], scores(0.5), watermark_ms=10)
    assert [(block.num_positives, block.num_negatives) for block in blocks] == [(1_000, 1_000)]
    assert labels.num_labels == 1_000


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_block_is_bounded_while_one_class_is_missing_and_ends_with_the_latest_labels(share: float) -> None:
    labels = began(BlockSize(max_labels=1_000, min_positives=100, min_negatives=100), unanswered=(False, False))
    for request in range(10_000):
        group = answer(str(request), 10 + request, "1", like=share)
        assert labels.add([group], scores(0.5, like=request / 10_000), watermark_ms=10 + 100 * request) == []
        assert labels.num_labels <= 1_000
    blocks = []
    for request in range(10_000, 10_100):
        group = answer(str(request), 10 + request, "1", like=1.0 - share)
        blocks += labels.add([group], scores(0.5), watermark_ms=10 + 100 * request)
    (block,) = blocks
    assert 900 <= block.num_positives + block.num_negatives <= 1_000
    assert min(block.num_positives, block.num_negatives) == 100
    assert block.auc == pytest.approx(share)  # all scores of the first class are the newest, beyond .9


def test_more_answers_than_may_wait_are_sampled_by_whole_exposures() -> None:
    labels = began(BlockSize(min_ms=0, min_positives=200, min_negatives=400, max_waiting=50))
    blocks: list[Block] = []
    for request in range(6_000):
        name = str(request)
        blocks += labels.add([answer(name, 10 + request, "1", interact=1.0)], scores(0.3), watermark_ms=10)
        assert labels.num_waiting <= 50
        if request >= 500:  # ten times as many as may wait
            blocks += labels.add([closing(str(request - 500), 10 + request - 500, "2", "3")], scores(0.3, 0.3), watermark_ms=10)
    assert blocks
    for block in blocks:
        assert block.num_negatives == pytest.approx(2 * block.num_positives, abs=2)


def test_traffic_that_grows_does_not_look_like_a_loss_of_calibration() -> None:
    """Every request has one answer at once and one negative a minute later, and is scored rightly; requests double every 15 seconds."""
    matured, latest = (
        began(BlockSize(min_ms=5_000, min_positives=10, min_negatives=10)),
        PrequentialWindow(TASKS, 500),
    )
    events = []
    for second in range(100):
        for request in range(int(2 ** (second / 15))):
            name, at_ms = f"{second}-{request}", second * 1_000 + 1
            events += [(at_ms, answer(name, at_ms, "1", interact=1.0)), (at_ms + 60_000, closing(name, at_ms, "2"))]
    events = sorted((event for event in events if event[0] < 100_000), key=lambda event: event[0])
    blocks = []
    for at_ms, group in events:
        positive = float(group.revisions[0] > 0)
        latest.add(scores(0.5), np.asarray([[positive, 0]], np.float32), np.asarray([[1 - positive, 0]], np.float32))
        blocks += [block for block in matured.add([group], scores(0.5), watermark_ms=at_ms) if block.task == "interact"]
    assert len(blocks) > 3
    assert all(math.exp(block.log_calibration) == pytest.approx(1.0, abs=0.1) for block in blocks)
    assert latest.quality()["interact"].calibration < 0.6  # what the gate would have seen in the latest labels
