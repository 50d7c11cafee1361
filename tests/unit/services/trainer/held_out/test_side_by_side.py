"""Several trainings beside each other: over the same rows, or not at all; and who is said to be better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from services.trainer.held_out.report import compare
from services.trainer.held_out.scored import LIVE, ScoredEvents, TaskRows
from services.trainer.held_out.side_by_side import side_by_side, verdict


def scored(noise: float, *, users: int = 40, with_others: bool = True, seed: int = 0) -> ScoredEvents:
    """Labels are the same for each noise; scores are the labels but for the noise."""
    labels_N = (np.random.default_rng(7).random(users * 10) < 0.3).astype(np.float64)
    rng = np.random.default_rng(seed)
    own_N = np.clip(0.1 + 0.8 * labels_N + noise * rng.normal(size=len(labels_N)), 0.01, 0.99)
    scores = {LIVE: own_N} | ({"frozen": 0.5 * own_N, "items": np.full(len(labels_N), 0.3)} if with_others else {})
    user_E = np.repeat(np.arange(users), 10)
    rows = TaskRows(event_N=np.arange(len(labels_N)), labels_N=labels_N, scores=scores, ndcg=None)
    known_E = np.ones(len(user_E), np.bool_)
    return ScoredEvents(
        [f"u{user}" for user in range(users)], user_E, known_E, known_E, np.full(len(user_E), "rating", object), {"like": rows}
    )


def test_each_training_keeps_its_name_and_the_counters_stand_once() -> None:
    both = side_by_side({"new": scored(0.05), "old": scored(0.4, with_others=False)})
    assert list(both.tasks["like"].scores) == ["new", "new_frozen", "old", "items"]
    assert np.array_equal(both.tasks["like"].scores["old"], scored(0.4).tasks["like"].scores[LIVE])


def test_rows_of_other_events_or_users_are_refused() -> None:
    one = scored(0.05)
    rows = one.tasks["like"]
    others = replace(one, tasks={"like": replace(rows, labels_N=1.0 - rows.labels_N)})
    strangers = replace(one, users=[f"v{user}" for user in range(40)])
    for other in (others, strangers):
        with pytest.raises(ValueError, match="like: new, old were not scored on the same rows"):
            side_by_side({"new": one, "old": other})


@pytest.mark.parametrize(
    ("new", "old", "said"),
    [
        (scored(0.05), scored(0.4, seed=1), "better"),
        (scored(0.4), scored(0.05, seed=1), "worse"),
        (scored(0.2), scored(0.2, seed=1), "no different"),
    ],
)
def test_a_difference_counts_when_its_interval_holds_no_zero(new: ScoredEvents, old: ScoredEvents, said: str) -> None:
    tasks = compare(side_by_side({"new": new, "old": old}), "new")
    assert {verdict(tasks, "new", "old")["like"][metric] for metric in ("auc", "log_loss")} == {said}


def test_of_too_few_users_nothing_is_told() -> None:
    tasks = compare(side_by_side({"new": scored(0.05, users=2), "old": scored(0.4, users=2)}), "new")
    assert verdict(tasks, "new", "old")["like"]["log_loss"] == "not told"
