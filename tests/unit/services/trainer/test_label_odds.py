"""How often labels are 1, as it is counted before the first step, and what beginning there is good for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.states import Interaction
from services.trainer import label_odds
from services.trainer.batch import FeatureStates, replay
from services.trainer.group_columns import columns_of, loss_weights
from services.trainer.label_odds import log_odds
from services.trainer.learner import LearnerConfig
from services.trainer.passes import Passes, Task
from services.trainer.replay_order import BatchConfig, replay_order
from tests.learning import CATEGORIES, ITEMS, SPEC, interactions

pytestmark = pytest.mark.ml

SHOWN = {
    "format": 2,
    "model": "ranker",
    "tables": {"user": {"dim": 8}, "item": {"dim": 8}},
    "kinds": {"click": {}, "buy": {}},
    "tasks": [{"name": "interact", "labels": {"click": 1, "buy": 1}, "unanswered": 0}, {"name": "want", "labels": {"buy": 1}}],
    "negatives": {"source": "impressions", "keep_rate": 1.0},
    "blend": {"interact": 1.0},
}


def shown(count: int, every: int, *, kind: str = "click") -> list[Interaction]:
    """Of `every` impressions one is answered, whoever sees whatever."""
    return [
        Interaction(f"u{at % 97}", f"i{at % 31}", kind if at % every == every // 2 else "impression", 1.0, at * 1000) for at in range(count)
    ]


@pytest.mark.parametrize("keep_rate", [1.0, 0.1])
def test_of_impressions_the_rate_is_that_of_the_file_whatever_is_thinned(keep_rate):
    spec = FeatureSpec.parse(SHOWN | {"negatives": {"source": "impressions", "keep_rate": keep_rate}})
    odds = log_odds(spec, shown(30_000, 300), 31)
    assert odds.dtype == np.float32
    assert odds[0] == pytest.approx(-np.log(299), abs=0.1)
    assert odds[1] == 0.0, "no sample says anything about that task"


def test_a_label_that_never_comes_is_rare_and_not_impossible():
    spec = FeatureSpec.parse(SHOWN)
    assert log_odds(spec, shown(1_000, 10_000), 31)[0] == pytest.approx(np.log(0.5 / 1_000.5))
    assert log_odds(spec, [], 31).tolist() == [0.0, 0.0]


def test_of_many_events_some_are_counted_from_all_over_the_file(monkeypatch):
    monkeypatch.setattr(label_odds, "MAX_EVENTS", 5_000)
    acts = [*shown(100_000, 20), *shown(100_000, 5)]
    assert log_odds(FeatureSpec.parse(SHOWN), acts, 31)[0] == pytest.approx(np.log(0.125 / 0.875), abs=0.15)


@pytest.mark.parametrize("keep_rate", [1.0, 0.16])
def test_drawn_negatives_count_as_the_learner_weighs_them(keep_rate):
    spec = FeatureSpec.parse(SPEC.model_dump(mode="json") | {"negatives": {"keep_rate": keep_rate}})
    acts, config = interactions(400), BatchConfig()
    groups = replay(spec, replay_order(acts, config), ITEMS, FeatureStates(spec, CATEGORIES), config, 0)
    ones_BT, zeros_BT = loss_weights([columns_of(spec, group) for group in groups])
    thinned_T = [keep_rate if task.unanswered is not None else 1.0 for task in spec.tasks]
    wanted_T = np.log(ones_BT.sum(axis=0) / (zeros_BT.sum(axis=0) / thinned_T))
    np.testing.assert_allclose(log_odds(spec, acts, len(ITEMS)), wanted_T, atol=0.1)


def test_rare_clicks_are_predicted_as_rare_after_few_of_them():
    spec, config = FeatureSpec.parse(SHOWN), BatchConfig(feature_lag_s=0.0)
    acts = shown(6_000, 200)
    items = sorted({one.item_id for one in acts})
    task = Task(spec=spec, events=acts[:4_000], categories=dict.fromkeys(items, ()), item_ids=items)
    trained = Passes(task, config, LearnerConfig(), say=lambda _: None).run()
    later = list(replay(spec, replay_order(acts[4_000:], config), items, trained.states, replace(config), 1, first=4_000))
    said = float(np.mean([scores[0, 0] for scores in trained.learner.score(later)]))
    assert said * 200 == pytest.approx(1.0, abs=0.5), "from one half, at this unit of the loss, 11.9 times as many"
