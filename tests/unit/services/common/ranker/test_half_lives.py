"""States that were made under other half-lives: what stays is kept to the bit, what is new is estimated, and old bytes still read."""

from __future__ import annotations

import random

import pytest

from services.common.platform.errors import ConfigurationError, CorruptArtifact
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.half_lives import window_events
from services.common.ranker.recall_state import pack_decayed, pack_popular, unpack_decayed, unpack_popular
from services.common.ranker.states import GlobalState, Interaction, ItemState, merge_item_bytes, present_item_bytes
from tests import old_states

SPEC = FeatureSpec.load("model_repo/ranker/feature_spec.yaml")


def spec_with(*half_lives: float) -> FeatureSpec:
    return FeatureSpec.parse(SPEC.model_dump(mode="json") | {"counters": {"half_lives_events": list(half_lives)}})


OLD = spec_with(500, 5000)


def state_of(spec: FeatureSpec, clocks: list[float]) -> ItemState:
    state = ItemState()
    for number, clock in enumerate(clocks):
        state.apply(spec, Interaction("u", "i", "rating", 1.0 + number % 5, 0), clock, number)
    return state


@pytest.mark.parametrize("half_lives", [(50, 500, 5000), (500,), (5000,), (40, 900), (500, 700, 5000, 90_000), (1, 2, 3, 4)])
def test_what_stays_is_kept_what_is_dropped_goes_and_what_is_new_lies_between_its_neighbours(half_lives) -> None:
    new = spec_with(*half_lives)
    for seed in range(100):
        rng = random.Random(seed)
        clocks = sorted(rng.uniform(1, 10 ** rng.uniform(1, 5)) for _ in range(rng.randrange(1, 60)))
        old = state_of(OLD, clocks)
        got = ItemState.from_bytes(new, old.to_bytes(OLD))
        assert (got.last_offset, got.clock, got.tally, got.value_sq_sum) == (old.last_offset, old.clock, old.tally, old.value_sq_sum)
        known = dict(zip(OLD.counters.half_lives_events, old.decayed, strict=True))
        assert [known[one] for one in half_lives if one in known] == [
            tally for one, tally in zip(half_lives, got.decayed, strict=True) if one in known
        ]
        acts = [0.0, *(tally.acts for tally in got.decayed), got.tally.acts]
        assert acts == sorted(acts)
        assert all(0 <= tally.value_sum <= tally.rated <= tally.acts + 1e-9 for tally in got.decayed)
        assert ItemState.from_bytes(new, got.to_bytes(new)) == got
        assert got.apply(new, Interaction("u", "i", "rating", 5.0, 0), clocks[-1] + 1, 1_000)


@pytest.mark.parametrize("every", [1, 10, 100])
@pytest.mark.parametrize("events", [1_000, 50_000])
def test_of_an_even_stream_the_estimate_is_what_the_counter_would_have_been(every: int, events: int) -> None:
    clocks = [float(clock) for clock in range(every, events + 1, every)]
    new = spec_with(200, 1_000, 20_000)
    got, true = ItemState.from_bytes(new, state_of(OLD, clocks).to_bytes(OLD)), state_of(new, clocks)
    for one, two in zip(got.decayed, true.decayed, strict=True):
        assert one.acts == pytest.approx(two.acts, rel=0.05, abs=0.7)
        assert one.value_sum == pytest.approx(two.value_sum, rel=0.1, abs=1.0)


def test_equally_many_half_lives_of_other_values_are_not_mixed() -> None:
    clocks = [float(clock) for clock in range(100, 100_001, 100)]
    new = spec_with(50, 50_000)
    got = ItemState.from_bytes(new, state_of(OLD, clocks).to_bytes(OLD))
    assert got.decayed[1].acts == pytest.approx(window_events(50_000, 1e5) / 100, rel=0.01)
    assert got.decayed[1].acts > 5 * state_of(OLD, clocks).decayed[1].acts


def test_states_of_before_are_read_under_the_present_half_lives_if_they_are_as_many() -> None:
    state = state_of(OLD, [3.0, 700.0, 5_000.0])
    old = old_states.item_bytes(state)
    assert ItemState.from_bytes(OLD, old) == state
    assert present_item_bytes(OLD, old) == state.to_bytes(OLD)
    more = ItemState.from_bytes(spec_with(50, 500, 5000), old)
    assert (more.tally, more.last_offset, len(more.decayed)) == (state.tally, state.last_offset, 3)
    assert 0 < more.decayed[0].acts < more.decayed[1].acts < more.decayed[2].acts < state.tally.acts
    said = ItemState.from_bytes(spec_with(50, 500, 5000), old, unsaid=OLD.counters.half_lives_events)
    assert said.decayed[1:] == state.decayed
    for num_half_lives in (1, 2, 3, 4):
        spec = spec_with(*range(10, 10 + num_half_lives))
        assert ItemState.from_bytes(spec, old_states.item_bytes(state_of(spec, [1.0]))) == state_of(spec, [1.0])


def test_states_of_several_half_lives_are_merged_under_the_present_ones() -> None:
    clocks = [float(clock) for clock in range(1, 2_001)]
    new = spec_with(100, 500)
    states = [state_of(OLD, clocks).to_bytes(OLD), old_states.item_bytes(state_of(OLD, clocks)), state_of(new, clocks).to_bytes(new), None]
    whole = GlobalState()
    merged = merge_item_bytes(new, [[state] for state in states], [whole, whole, whole, None])
    assert merged.tally_N3[0, 0] == 6_000
    old, present = state_of(OLD, clocks).decayed, state_of(new, clocks).decayed
    # The one of before does not say that its second counter has another half-life than the present second one.
    assert merged.decayed_NH3[0, 1, 0] == pytest.approx(old[0].acts + old[1].acts + present[1].acts, rel=1e-9)


def test_popularity_says_its_half_life_and_is_translated() -> None:
    for before, after, clock in ((500.0, 50.0, 1e4), (50.0, 500.0, 1e4), (500.0, 500.0, 1e4), (500.0, 50.0, 1.0), (500.0, 50.0, 0.0)):
        share = window_events(after, clock) / window_events(before, clock) if clock else 1.0
        assert unpack_decayed(pack_decayed(8.0, clock, before), after) == (pytest.approx(8.0 * share), clock)
        packed = pack_popular(before, [("a", 8.0), ("b", 2.0)])
        assert unpack_popular(packed, after, clock) == [("a", pytest.approx(8.0 * share)), ("b", pytest.approx(2.0 * share))]
    assert unpack_decayed(old_states.popularity_bytes(3.0, 7.0), 50.0) == (3.0, 7.0)
    assert unpack_popular(b"", 50.0, 1.0) == unpack_popular(pack_popular(7.0, []), 50.0, 1.0) == []


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
def test_numbers_that_are_no_counts_are_refused(number: float) -> None:
    state = state_of(OLD, [1.0, 2.0])
    state.value_sq_sum = number
    for data in (state.to_bytes(OLD), old_states.item_bytes(state)):
        with pytest.raises(CorruptArtifact):
            ItemState.from_bytes(OLD, data)
    for count in ((number, 1.0), (1.0, number), (0.0, 1.0)):
        with pytest.raises(CorruptArtifact):
            unpack_decayed(old_states.popularity_bytes(*count), 500.0)


@pytest.mark.parametrize("half_life", [0.0, -5.0, float("inf"), float("nan")])
def test_a_half_life_that_is_none_is_refused(half_life: float) -> None:
    with pytest.raises(ConfigurationError, match="half_lives_events must be positive and rising"):
        spec_with(half_life)
