from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from services.common.ranker.feature_records import pack_records
from services.common.ranker.states import Interaction
from services.trainer.batch import FeatureStates, train_epoch
from services.trainer.held_out.replay import begun, drawn_share, is_drawn, score_then_learn
from services.trainer.held_out.scored import FROZEN, LIVE, Collector, ScoredEvents
from services.trainer.learner import Learner
from services.trainer.replay_order import BatchConfig, replay_order
from tests.learning import CATEGORIES, ITEMS, SPEC, interactions

pytestmark = pytest.mark.ml

CONFIG = BatchConfig(events_per_step=16)
FIRST = 200


def run(events: Sequence[Interaction], *, max_scored: int = 10_000) -> tuple[ScoredEvents, Learner, Learner, FeatureStates]:
    """Train on the first events and replay the others."""
    first, last = events[:FIRST], events[FIRST:]
    live, frozen = Learner(SPEC), Learner(SPEC)
    states, _ = train_epoch(SPEC, live, replay_order(first, CONFIG), CATEGORIES, CONFIG, 0, ITEMS)
    frozen.load_state_arrays(live.state_arrays())
    collector = Collector(SPEC, {one.user_id for one in first}, {one.item_id for one in first})
    score_then_learn(
        SPEC, live, frozen, replay_order(last, CONFIG), ITEMS, begun(SPEC, first, states), CONFIG, collector, max_scored=max_scored
    )
    return collector.scored(), live, frozen, states


def of_events(scored: ScoredEvents, name: str, count: int) -> np.ndarray:
    """The interact scores of the first events."""
    rows = scored.tasks["interact"]
    return rows.scores[name][rows.event_N < count]


@pytest.fixture(scope="module")
def whole() -> tuple[ScoredEvents, Learner, Learner, FeatureStates]:
    return run(interactions(300))


@pytest.mark.parametrize("name", [LIVE, FROZEN, "items"])
def test_a_score_depends_on_nothing_that_comes_with_the_event_or_later(whole, name: str) -> None:
    events = interactions(300)
    at = FIRST + 60
    # The opinion of one event, and all that comes after it, are another history.
    other = [*events[:at], replace(events[at], value=6.0 - events[at].value), *interactions(300, seed=9)[at + 1 :]]
    changed = run(other)[0]
    assert (of_events(changed, name, 61) == of_events(whole[0], name, 61)).all()
    assert not (of_events(changed, name, 100) == of_events(whole[0], name, 100)).all()


def test_events_of_one_block_are_scored_before_any_of_them_is_learned() -> None:
    events = interactions(260)
    together = [*events[:FIRST], *(replace(one, user_id="u1", time_ms=events[FIRST].time_ms) for one in events[FIRST:])]
    scored, live, frozen, _ = run(together)
    # One block of 60 events, longer than a step: the live learner scored all of them with the weights of the frozen one.
    assert (of_events(scored, LIVE, 60) == of_events(scored, FROZEN, 60)).all()
    assert live.state_hash() != frozen.state_hash()


def test_the_live_learner_learns_and_the_frozen_one_does_not(whole) -> None:
    scored, live, frozen, _ = whole
    trained = Learner(SPEC)
    train_epoch(SPEC, trained, replay_order(interactions(300)[:FIRST], CONFIG), CATEGORIES, CONFIG, 0, ITEMS)
    assert frozen.state_hash() == trained.state_hash() != live.state_hash()
    assert (of_events(scored, LIVE, 16) == of_events(scored, FROZEN, 16)).all()
    assert not (of_events(scored, LIVE, 100) == of_events(scored, FROZEN, 100)).all()


def test_the_states_contain_every_event_at_the_end(whole) -> None:
    states = FeatureStates(SPEC, CATEGORIES)
    for event in interactions(300):
        states.apply(event)
    ours, wanted = (pack_records(one.records()) for one in (whole[3], states))
    assert all((ours[name] == wanted[name]).all() for name in wanted)


def test_whom_is_scored_changes_nothing_of_what_is_learned(whole) -> None:
    scored, live, _, _ = run(interactions(300), max_scored=50)
    assert live.state_hash() == whole[1].state_hash()
    assert 0 < len(scored) < len(whole[0]) == 100
    assert set(scored.users) == {user for user in whole[0].users if is_drawn(user, 0.5)}
    drawn = [is_drawn(f"user {number}", 0.25) for number in range(4_000)]
    assert np.mean(drawn) == pytest.approx(0.25, abs=0.03)


def test_of_few_users_one_is_scored_whatever_its_id_hashes_to() -> None:
    for number in range(50):
        users = [f"one {number}", f"other {number}"]
        for some in (users[:1], users):
            share = drawn_share(iter(some), 100_000, 20)
            assert sum(is_drawn(user, share) for user in some) == 1
    many = [f"user {number}" for number in range(4_000)]
    assert drawn_share(iter(many), 4_000, 1_000) == 0.25
    assert drawn_share(iter(many), 4_000, 4_000) == 1.0


def test_what_is_shown_is_the_chosen_item_and_others_that_the_user_has_not_chosen(whole) -> None:
    scored = whole[0]
    rows = scored.tasks["interact"]
    assert rows.labels_N.sum() == 100
    assert (np.bincount(rows.event_N) == 100).all()
    known = {one.item_id for one in interactions(300)[:FIRST]}
    assert scored.knows_item_E.tolist() == [one.item_id in known for one in interactions(300)[FIRST:]]
    assert scored.knows_user_E.all()
