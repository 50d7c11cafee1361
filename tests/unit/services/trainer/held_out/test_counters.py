from __future__ import annotations

import numpy as np
import pytest

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.states import Interaction
from services.trainer.held_out.counters import NAMES, Counters, names_of
from tests.learning import SPEC

INTERACT, LIKE = (SPEC.task_names.index(name) for name in ("interact", "like"))


def rated(user_id: str, item_id: str, stars: float) -> Interaction:
    return Interaction(user_id, item_id, "rating", stars, 0)


def test_rates_are_those_of_what_was_counted() -> None:
    counters = Counters(SPEC)
    for _ in range(200):
        counters.add(rated("u", "good", 5.0))
        counters.add(rated("u", "bad", 1.0))
    scores = counters.scores("new user", ["good", "bad", "unseen"], 300)
    assert scores["items"][:, LIKE] == pytest.approx([1.0, 0.0, 0.5], abs=0.02)
    assert scores["users_and_items"][:, LIKE] == pytest.approx(scores["items"][:, LIKE])


def test_a_user_who_likes_more_is_said_to_like_more() -> None:
    counters = Counters(SPEC)
    for number in range(20):
        counters.add(rated("fond", f"i{number}", 5.0))
        counters.add(rated("stern", f"i{number}", 1.0))
    fond, stern = (counters.scores(user, ["i1"], 100)["users_and_items"][0, LIKE] for user in ("fond", "stern"))
    assert fond > 0.8
    assert stern < 0.2
    assert counters.scores("fond", ["i1"], 100)["items"][0, LIKE] == pytest.approx(0.5, abs=0.01)


def test_of_uniform_choices_among_a_hundred_each_is_chosen_at_a_hundredth() -> None:
    """What is shown is the chosen item and 99 others in equal shares: the sum of an event's rates is about 1."""
    rng = np.random.default_rng(0)
    counters = Counters(SPEC)
    for _ in range(20_000):
        counters.add(rated("u", str(rng.integers(400)), 5.0))
    shown = [str(item) for item in range(100)]
    for name in ("items", "recent_items"):
        assert counters.scores("u", shown, 400)[name][:, INTERACT].sum() == pytest.approx(1.0, abs=0.05)


def test_events_that_say_nothing_of_a_task_were_lists_for_it_all_the_same() -> None:
    """Where negatives are drawn, each event's unchosen items are negatives: three views a purchase, and a fourth of the lists have one."""
    raw = SPEC.model_dump(mode="json")
    raw["kinds"]["view"] = {}
    spec = FeatureSpec.parse(raw)
    rng = np.random.default_rng(0)
    counters = Counters(spec)
    for number in range(20_000):
        counters.add(Interaction("u", str(rng.integers(400)), "rating" if number % 4 == 0 else "view", 5.0, 0))
    shown = [str(item) for item in range(100)]
    for name, noise in (("items", 0.02), ("recent_items", 0.06)):
        rates = counters.scores("u", shown, 400)[name]
        assert rates[:, INTERACT].sum() == pytest.approx(0.25, abs=noise), name
    assert rates[:, LIKE] == pytest.approx(1.0, abs=0.05)


def test_recent_rates_forget() -> None:
    counters = Counters(SPEC)
    half_life = int(SPEC.counters.half_lives_events[-1])
    for item_id in ("once", "now"):
        for _ in range(3 * half_life):
            counters.add(rated("u", item_id, 5.0))
    scores = counters.scores("u", ["once", "now", *map(str, range(98))], 200)
    assert scores["items"][0, INTERACT] == pytest.approx(scores["items"][1, INTERACT])
    assert scores["recent_items"][1, INTERACT] > 3 * scores["recent_items"][0, INTERACT]


def test_decayed_counts_go_on_beyond_what_a_float_holds() -> None:
    raw = SPEC.model_dump(mode="json")
    raw["counters"]["half_lives_events"] = [1.0]
    counters = Counters(FeatureSpec.parse(raw))
    for number in range(3_000):  # 2**3000 is no float
        counters.add(rated("u", f"i{number % 2}", 5.0))
    scores = counters.scores("u", ["i0", "i1"], 2)["recent_items"]
    assert np.isfinite(scores).all()
    assert scores[1, INTERACT] > scores[0, INTERACT]


def test_where_unanswered_items_are_negatives_users_have_one_rate() -> None:
    assert [names_of(SPEC, task) for task in SPEC.tasks] == [NAMES[:2], NAMES]
