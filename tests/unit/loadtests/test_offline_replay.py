from __future__ import annotations

import pytest
import torch

from loadtests.movielens import Film, Rating, TimedRating, overlaid_sessions
from loadtests.offline_replay import Event, OfflineReplay, ReplayConfig, interaction_of, negative_group, positive_group, report
from services.common.ranker import exposure_block
from services.trainer.batch import FeatureStates
from services.trainer.learner import Learner
from tests.learning import CATEGORIES, ITEMS, SPEC, interactions

pytestmark = pytest.mark.ml

FILMS = {item: Film(item, item, CATEGORIES[item]) for item in ITEMS}


def ratings(count: int) -> list[TimedRating]:
    events = interactions(count)
    plain = [Rating(index, one.user_id, one.item_id, one.value, one.time_ms // 1000) for index, one in enumerate(events)]
    return overlaid_sessions(plain, active=5)


def replayed(count: int, config: ReplayConfig) -> OfflineReplay:
    torch.set_num_threads(1)
    states = FeatureStates(SPEC, CATEGORIES)
    replay = OfflineReplay(SPEC, FILMS, Learner(SPEC), Learner(SPEC), states, config)
    replay.run(ratings(count))
    return replay


def test_until_something_is_learned_live_and_frozen_agree_to_the_bit() -> None:
    replay = replayed(60, ReplayConfig(lag_events=30, window_events=10))
    assert replay.num_learned > 0
    assert replay.scores["live"].like[:30] == replay.scores["frozen"].like[:30]
    assert replay.scores["live"].like[-5:] != replay.scores["frozen"].like[-5:]


def test_nothing_is_learned_before_its_lag_has_passed() -> None:
    replay = replayed(60, ReplayConfig(lag_events=100))
    assert replay.num_learned == 0
    assert replay.scores["live"].ndcg == replay.scores["frozen"].ndcg


def test_the_groups_are_those_of_the_joiner() -> None:
    states = FeatureStates(SPEC, CATEGORIES)
    rating = Rating(3, "u", "7", 5.0, 0)
    event = Event(rating, ITEMS[:100], exposure_block.encode(states.features("u", ITEMS[:100]), SPEC.schema_hash))
    positive, negative = positive_group(SPEC, event), negative_group(SPEC, event)
    assert negative is not None
    assert [(sample.item_id, sample.revision) for sample in positive.samples] == [("7", 1)]
    assert [(label.task, label.value) for label in positive.samples[0].labels] == [("interact", 1.0), ("like", 1.0)]
    assert {sample.revision for sample in negative.samples} == {0}
    assert "7" not in {sample.item_id for sample in negative.samples}
    assert exposure_block.num_items(negative.features_block) == len(negative.samples)


def test_the_report_has_every_gain_with_its_interval() -> None:
    replay = replayed(120, ReplayConfig(lag_events=20, window_events=10))
    result = report(replay, ratings(120), {"u0", "u1"}, rounds=20)
    assert result["known_users"]["events"] + result["new_users"]["events"] == result["all"]["events"] == 120
    for name in ("like_auc_vs_frozen", "interact_ndcg10_vs_frozen", "like_auc_vs_counters", "interact_ndcg10_vs_counters"):
        gain = result["all"]["gain"][name]
        assert gain["low"] <= gain["mean"] <= gain["high"]


def test_a_rating_is_the_same_act_for_every_reducer() -> None:
    assert interaction_of(Rating(0, "u", "1", 4.0, 12)).time_ms == 12_000
