from __future__ import annotations

import numpy as np
import pytest

from loadtests.metrics import OnlineCounters, auc, auc_gain, mean_gain, ndcg_of_target


def test_auc_counts_pairs_and_ties_half() -> None:
    labels, scores = np.asarray([1.0, 0.0, 1.0, 0.0]), np.asarray([0.9, 0.1, 0.5, 0.5])
    assert auc(labels, scores) == pytest.approx(3.5 / 4)
    assert np.isnan(auc(np.ones(3), np.arange(3.0)))


def test_weights_are_repetitions() -> None:
    rng = np.random.default_rng(0)
    labels, scores, weights = rng.integers(0, 2, 50).astype(float), rng.normal(size=50), rng.integers(0, 4, 50)
    assert auc(labels, scores, weights.astype(float)) == pytest.approx(auc(np.repeat(labels, weights), np.repeat(scores, weights)))


@pytest.mark.parametrize(("target", "expected"), [(0, 1.0), (1, 1 / np.log2(3)), (11, 0.0)])
def test_ndcg_of_one_relevant_item_is_by_rank_and_zero_beyond_ten(target: int, expected: float) -> None:
    assert ndcg_of_target(-np.arange(20.0), target) == pytest.approx(expected)


def test_a_list_of_equal_scores_earns_nothing() -> None:
    assert ndcg_of_target(np.zeros(100), 3) == 0.0


def test_a_real_gain_has_an_interval_above_zero_and_no_gain_has_not() -> None:
    rng = np.random.default_rng(1)
    users = [f"u{index % 60}" for index in range(3_000)]
    worse = rng.random(3_000)
    real = mean_gain(worse + 0.05 + 0.01 * rng.normal(size=3_000), worse, users, rounds=200)
    none = mean_gain(worse + 0.5 * rng.normal(size=3_000), worse, users, rounds=200)
    assert 0.045 < real.low < real.mean < real.high < 0.055
    assert none.low < 0 < none.high
    labels = (worse > rng.random(3_000)).astype(float)
    gain = auc_gain(labels, worse, rng.random(3_000), users, rounds=200)
    assert gain.low > 0.2


def test_users_with_many_events_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    per_user = rng.normal(size=10)
    ours = np.repeat(per_user, 300)
    users = [f"u{index}" for index in range(10) for _ in range(300)]
    gain = mean_gain(ours, np.zeros(3_000), users, rounds=300)
    assert gain.high - gain.low > 0.5


def test_counters_know_popularity_and_smoothed_means() -> None:
    counters = OnlineCounters()
    for index in range(30):
        counters.add(f"u{index}", "hit", 1.0)
    counters.add("u0", "flop", 0.0)
    assert counters.popularity(["hit", "flop", "new"]).tolist() == [30.0, 1.0, 0.0]
    assert counters.like_score("x", "hit") > counters.like_score("x", "new") > counters.like_score("x", "flop")
