import json

import numpy as np

from loadtests.demo.replay import Outcome
from loadtests.demo.report import FrozenScore, percentiles, quality, side_by_side, write_json


def outcome(number: int, *, user: str, stars: float, like: float | None, ndcg: float | None) -> Outcome:
    return Outcome(
        request_id=f"r{number}",
        user_id=user,
        item_id="i",
        stars=stars,
        at_s=float(number),
        model_version="1.1",
        live_like=like,
        live_ndcg=ndcg,
        means=0.5,
        popularity_ndcg=0.0,
    )


def events(num: int) -> tuple[list[Outcome], dict[str, FrozenScore]]:
    rng = np.random.default_rng(0)
    outcomes, frozen = [], {}
    for number in range(num):
        stars = float(rng.integers(1, 6))
        liked = float(stars >= 4)
        outcomes.append(outcome(number, user=f"u{number % 20}", stars=stars, like=liked + rng.normal(0, 0.5), ndcg=0.6))
        frozen[f"r{number}"] = FrozenScore(like=liked + rng.normal(0, 2.0), ndcg=0.2)
    return outcomes, frozen


def test_a_better_live_model_shows_a_gain_whose_interval_excludes_zero():
    result = quality(side_by_side(*events(600), set()), rounds=200)
    for metric in ("like_auc", "interact_ndcg10"):
        for opponent in ("vs_frozen", "vs_counters"):
            gain = result["gain"][metric][opponent]
            assert 0 < gain["low"] <= gain["mean"] <= gain["high"]
    assert abs(result["gain"]["interact_ndcg10"]["vs_frozen"]["mean"] - 0.4) < 1e-9
    assert result["like_auc"]["means"] == 0.5


def test_equal_models_show_no_gain():
    outcomes, _ = events(300)
    same = {o.request_id: FrozenScore(like=float(o.live_like or 0.0), ndcg=0.6) for o in outcomes}
    gain = quality(side_by_side(outcomes, same, set()), rounds=100)["gain"]
    assert gain["like_auc"]["vs_frozen"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_degraded_and_unscored_events_are_left_out():
    outcomes, frozen = events(10)
    outcomes.append(outcome(10, user="x", stars=5.0, like=None, ndcg=None))
    outcomes.append(outcome(11, user="x", stars=5.0, like=0.5, ndcg=0.5))
    assert len(side_by_side(outcomes, frozen, set()).users) == 10


def test_known_and_new_users_are_told_apart():
    scored = side_by_side(*events(40), {"u1", "u2"})
    assert set(scored.subset(scored.known).users) == {"u1", "u2"}
    assert len(scored.subset(~scored.known).users) == 36


def test_numbers_that_do_not_exist_are_null_in_the_report(tmp_path):
    write_json({"auc": float("nan"), "deep": {"low": float("inf"), "n": 3}}, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == {"auc": None, "deep": {"low": None, "n": 3}}


def test_percentiles_of_nothing_are_null():
    assert percentiles([]) == {"p50": None, "p95": None}
    assert percentiles([1.0, 3.0])["p50"] == 2.0
