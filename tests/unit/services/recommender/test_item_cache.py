"""Cached items are the bits that merging them alone gives, however they came to be kept; and no more are kept than the bound says."""

from __future__ import annotations

import numpy as np
import pytest

from services.common.platform.errors import CorruptArtifact
from services.common.platform.ids import entity_key
from services.common.ranker.states import GlobalState, merge_globals, merge_item_bytes
from services.common.ranker.tallies import ItemMatrix
from services.recommender.item_cache import Generation, ItemRows
from tests.recommender_fakes import SPEC
from tests.unit.services.common.ranker.test_merging import random_states

NUM_PARTIALS = 3


class Stored:
    """Items as Redis holds them."""

    def __init__(self, num_items: int, seed: int) -> None:
        states, self.totals = random_states(np.random.default_rng(seed), num_items, NUM_PARTIALS)
        self.ids = [f"item {number}" if number % 2 else str(number) for number in range(num_items)]
        self.packed = dict(zip(self.ids, zip(*states, strict=True), strict=True))

    def generation(self, max_items: int) -> Generation:
        return Generation(SPEC, self.totals, merge_globals(self.totals), expires_at=1.0, max_items=max_items)

    def fetched(self, item_ids: list[str]) -> list[bytes | None]:
        return [state for item_id in item_ids for state in self.packed[item_id]]

    def read(self, generation: Generation, item_ids: list[str]) -> ItemRows:
        missing = generation.missing(item_ids)
        return generation.rows(item_ids, missing, self.fetched(missing))

    def merged(self, item_ids: list[str]) -> ItemMatrix:
        return merge_item_bytes(SPEC, list(zip(*(self.packed[item_id] for item_id in item_ids), strict=True)), self.totals)


def check(rows: ItemRows, stored: Stored, item_ids: list[str]) -> None:
    items, expected = ItemMatrix.of_sums(rows.sums_NM), stored.merged(item_ids)
    for name in ("tally_N3", "value_sq_sum_N", "decayed_NH3"):
        assert getattr(items, name).tobytes() == getattr(expected, name).tobytes()
    assert rows.keys_N.tolist() == [entity_key(item_id) for item_id in item_ids]


@pytest.mark.parametrize("max_items", [0, 1, 30, 1_000])
def test_rows_are_the_bits_of_a_merge_of_these_items_in_this_order(max_items: int) -> None:
    stored, rng = Stored(300, seed=max_items), np.random.default_rng(max_items)
    generation = stored.generation(max_items)
    for _ in range(60):
        item_ids = [stored.ids[at] for at in rng.permutation(300)[: rng.integers(1, 60)]]
        check(stored.read(generation, item_ids), stored, item_ids)
        assert len(generation) <= max_items


def test_ten_times_more_items_than_are_kept_are_answered_and_the_memory_stays_bounded() -> None:
    stored = Stored(2_000, seed=1)
    generation = stored.generation(200)
    for start in range(0, 2_000, 50):
        item_ids = stored.ids[start : start + 50]
        check(stored.read(generation, item_ids), stored, item_ids)
    assert len(generation) == 200
    assert generation.num_bytes <= 200 * 8 * (4 + 3 * len(SPEC.counters.half_lives_events) + 1)
    assert generation.missing(stored.ids) == stored.ids[200:]


def test_requests_that_fetch_the_same_items_at_once_keep_each_once() -> None:
    stored = Stored(40, seed=2)
    generation = stored.generation(30)
    asked = [stored.ids[:20], stored.ids[10:30], stored.ids[20:40]]
    missing = [generation.missing(item_ids) for item_ids in asked]
    for item_ids, fetched in zip(asked, missing, strict=True):
        check(generation.rows(item_ids, fetched, stored.fetched(fetched)), stored, item_ids)
    assert len(generation) == 30


def test_bytes_that_are_no_state_are_refused_and_nothing_is_kept() -> None:
    generation = Stored(4, seed=3).generation(30)
    with pytest.raises(CorruptArtifact, match="are no item state"):
        generation.rows(["a", "b"], ["a", "b"], [None, None, b"not a state", None, None, None])
    assert len(generation) == 0 and isinstance(generation.total, GlobalState)
