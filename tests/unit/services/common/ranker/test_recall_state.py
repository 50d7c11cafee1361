from __future__ import annotations

import pytest

from services.common.platform.errors import CorruptArtifact
from services.common.ranker.recall_state import Neighbours, Popularity, add_up, pack_counts, pack_ids, unpack_counts, unpack_ids


def test_counts_and_ids_survive_packing_and_a_cut_is_noticed() -> None:
    counts = [("a", 3.0), ("ü", 0.5)]
    assert unpack_counts(pack_counts(counts)) == counts
    assert unpack_ids(pack_ids(["x", "y"])) == ["x", "y"]
    with pytest.raises(CorruptArtifact):
        unpack_counts(pack_counts(counts)[:-1])


def test_partial_lists_add_up_with_ties_by_item() -> None:
    assert add_up([[("a", 1.0), ("b", 2.0)], [("a", 1.0), ("c", 2.0)]], limit=2) == [("a", 2.0), ("b", 2.0)]


def test_popularity_forgets_by_events() -> None:
    popular = Popularity(half_life_events=10)
    for clock in range(5):
        popular.add("old", clock)
    for clock in range(40, 43):
        popular.add("new", clock)
    assert [item for item, _ in popular.top(clock=43, limit=2)] == ["new", "old"]


def test_neighbours_are_bounded_and_keep_the_frequent_ones() -> None:
    near = Neighbours(limit=3)
    for number in range(20):
        near.add("often")
        near.add(f"once-{number}")
    assert len(near.counts) == 3
    assert unpack_counts(near.to_bytes())[0][0] == "often"
    assert Neighbours.from_bytes(near.to_bytes(), limit=3).counts == near.counts
