"""Merged item states are the same bits as partials added one after another, whichever items are merged together."""

from __future__ import annotations

import numpy as np
import pytest

from services.common.ranker.states import GlobalState, ItemState, merge_item_bytes
from services.common.ranker.tallies import ItemMatrix, Tally
from tests.fuzz.ranker_states import SPEC

HALF_LIVES = np.asarray(SPEC.counters.half_lives_events)


def random_states(rng: np.random.Generator, num_items: int, num_partials: int) -> tuple[list[list[bytes | None]], list[GlobalState | None]]:
    """Return packed states, a quarter of them absent, and the totals of their partials, of which some are absent too."""

    def tally() -> Tally:
        return Tally(*(rng.random(3) * 10.0 ** rng.integers(-3, 6)).tolist())

    def packed() -> bytes | None:
        state = ItemState(5, float(rng.random() * 2e4), tally(), float(rng.random()), [tally() for _ in HALF_LIVES])
        return state.to_bytes(SPEC) if rng.random() < 0.75 else None

    states = [[packed() for _ in range(num_items)] for _ in range(num_partials)]
    totals = [
        GlobalState(int(rng.integers(1, 9)), 5, Tally(*(rng.random(3) * 1e4).tolist())) if rng.random() < 0.9 else None for _ in states
    ]
    return states, totals


def added_one_after_another(states_PN: list[list[bytes | None]], totals_P: list[GlobalState | None]) -> list[list[float]]:
    """Return the sums of every item, computed number by number."""
    clocks = [0.0 if total is None else total.clock for total in totals_P]
    clocks[0] += sum(total.tally.acts for total in totals_P[1:] if total is not None)
    items = []
    for at in range(len(states_PN[0])):
        sums = [0.0] * (4 + 3 * len(HALF_LIVES))
        for states, clock in zip(states_PN, clocks, strict=True):
            packed = states[at]
            if packed is None:
                continue
            state = ItemState.from_bytes(SPEC, packed)
            keeps = np.exp2(-max(clock - state.clock, 0.0) / HALF_LIVES).tolist()
            numbers = [*state.tally, state.value_sq_sum]
            for keep, tally in zip(keeps, state.decayed, strict=True):
                numbers += [number * keep for number in tally]
            sums = [one + other for one, other in zip(sums, numbers, strict=True)]
        items.append(sums)
    return items


def sums_of(items: ItemMatrix) -> list[list[float]]:
    return np.column_stack([items.tally_N3, items.value_sq_sum_N, items.decayed_NH3.reshape(len(items), -1)]).tolist()


@pytest.mark.parametrize("num_partials", [1, 2, 3, 9, 101])
def test_sums_are_those_of_partials_added_one_after_another(num_partials: int) -> None:
    rng = np.random.default_rng(num_partials)
    for _ in range(20):
        states, totals = random_states(rng, int(rng.integers(1, 30)), num_partials)
        assert sums_of(merge_item_bytes(SPEC, states, totals)) == added_one_after_another(states, totals)


@pytest.mark.parametrize("num_partials", [3, 9, 101])
def test_an_items_sums_do_not_depend_on_the_items_beside_it(num_partials: int) -> None:
    states, totals = random_states(np.random.default_rng(num_partials), 40, num_partials)
    together = sums_of(merge_item_bytes(SPEC, states, totals))
    for at in range(40):
        assert sums_of(merge_item_bytes(SPEC, [[of_partial[at]] for of_partial in states], totals)) == [together[at]]
