from __future__ import annotations

import numpy as np
import pytest

from services.trainer.held_out.estimates import (
    Estimate,
    auc,
    calibration,
    effective_users,
    gauc,
    log_loss,
    mean,
    ndcg_of_chosen,
    ndcg_of_users,
    student_975,
)
from services.trainer.prequential import area_under_roc, mean_log_loss
from tests.interval_coverage import MEASURES, coverage, drawn, truths

ROWS = drawn(np.random.default_rng(3), 40)


def of_each_user(of_one):
    """What a loop over users gives: by user (value, rows), for users with both classes."""
    found = {}
    for user in range(ROWS.num_users):
        own = ROWS.user_N == user
        if 0 < ROWS.labels_N[own].sum() < own.sum():
            found[user] = (of_one(ROWS.labels_N[own], ROWS.better_N[own]), own.sum())
    return found


def test_the_values_are_those_of_the_plain_formulas() -> None:
    arguments = ROWS.labels_N, ROWS.better_N, ROWS.user_N, ROWS.num_users
    assert auc(*arguments).value == pytest.approx(area_under_roc(ROWS.labels_N, ROWS.better_N))
    assert log_loss(*arguments).value == pytest.approx(mean_log_loss(ROWS.labels_N, ROWS.better_N))
    assert calibration(*arguments).value == pytest.approx(ROWS.better_N.sum() / ROWS.labels_N.sum())
    own = of_each_user(area_under_roc)
    assert 5 < len(own) < ROWS.num_users
    assert gauc(*arguments).value == pytest.approx(np.average([v for v, _ in own.values()], weights=[n for _, n in own.values()]))
    lists = of_each_user(lambda labels, scores: ndcg(labels[np.argsort(-scores)]) / ndcg(np.sort(labels)[::-1]))
    assert ndcg_of_users(*arguments).value == pytest.approx(np.mean([v for v, _ in lists.values()]))


def ndcg(labels) -> float:
    return float(sum(label / np.log2(rank + 2) for rank, label in enumerate(labels[:10])))


def test_tied_scores_count_as_every_order_of_them_would() -> None:
    labels, scores, users = np.array([1.0, 0.0, 0.0, 1.0]), np.array([0.5, 0.5, 0.5, 0.1]), np.zeros(4, np.int64)
    assert auc(labels, scores, users, 1).value == gauc(labels, scores, users, 1).value == area_under_roc(labels, scores) == 0.25
    discounts = [1 / np.log2(rank + 1) for rank in range(1, 5)]
    best = discounts[0] + discounts[1]
    assert ndcg_of_users(labels, scores, users, 1).value == pytest.approx((np.mean(discounts[:3]) + discounts[3]) / best)
    assert ndcg_of_chosen(np.array([0.5, 0.5, 0.9]), 0) == pytest.approx((discounts[1] + discounts[2]) / 2)
    assert ndcg_of_chosen(np.array([0.5, *np.ones(9)]), 0) == pytest.approx(1 / np.log2(11))
    assert ndcg_of_chosen(np.array([0.5, *np.ones(10)]), 0) == 0.0


@pytest.mark.parametrize("name", MEASURES)
def test_an_influence_is_what_leaving_the_user_out_does(name: str) -> None:
    """To first order: the measure without a user moves by minus its influence. Of many users none is large."""
    rows = drawn(np.random.default_rng(3), 600)
    whole = MEASURES[name](rows)
    assert whole.influence_U.sum() == pytest.approx(0.0, abs=1e-9)
    moved = []
    for user in range(100):
        left = rows.user_N != user
        without = MEASURES[name](rows._replace(**{key: getattr(rows, key)[left] for key in ("labels_N", "better_N", "worse_N", "user_N")}))
        moved.append(np.log(whole.value / without.value) if without.is_ratio else whole.value - without.value)
    said = whole.influence_U[:100]
    assert np.corrcoef(moved, said)[0, 1] > 0.99
    assert np.std(moved) == pytest.approx(np.std(said), rel=0.1)


def test_what_cannot_be_told_is_nan_and_has_no_interval() -> None:
    one_class, users = np.ones(6), np.arange(6)
    for measure in (auc, gauc, ndcg_of_users):
        found = measure(one_class, np.linspace(0, 1, 6), users, 6)
        assert np.isnan(found.value)
        assert found.interval() is None
    assert np.isnan(calibration(np.zeros(6), np.full(6, 0.5), users, 6).value)
    nothing = np.zeros(0)
    for measure in (auc, gauc, ndcg_of_users, log_loss, calibration):
        assert np.isnan(measure(nothing, nothing, nothing.astype(np.int64), 6).value)


def test_few_users_or_one_large_one_have_no_interval() -> None:
    values = np.linspace(0, 1, 40)
    assert mean(values, np.repeat(np.arange(4), 10), 4).interval() is None
    assert mean(values, np.repeat(np.arange(5), 8), 5).interval() is not None
    mostly_one = np.concatenate([np.zeros(32, np.int64), np.arange(1, 9)])
    assert effective_users(np.bincount(mostly_one).astype(float)) < 3
    assert mean(values, mostly_one, 9).interval() is None


def test_an_interval_ends_where_the_measure_does() -> None:
    near_one = Estimate(0.99, np.array([0.2, -0.2, 0.2, -0.2, 0.1, -0.1]), np.ones(6)).within(0.0, 1.0)
    interval = near_one.interval()
    assert interval is not None
    assert interval.high == 1.0
    gain = near_one.minus(near_one).interval()
    assert gain is not None
    assert gain.low == gain.high == 0.0


@pytest.mark.parametrize(("degrees", "quantile"), [(2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)])
def test_students_quantiles_are_those_of_the_table(degrees: int, quantile: float) -> None:
    assert student_975(degrees) == pytest.approx(quantile, rel=0.01)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """150 draws of 50 users: .95 is told from .88 (three standard deviations are .053)."""
    for name, share in coverage(50, 150, truths()).items():
        assert share > 0.88, name
