from __future__ import annotations

import math
import random

import pytest

from services.common.platform.errors import CorruptArtifact
from services.common.ranker import recall_state
from services.common.ranker.recall_state import (
    Neighbours,
    Popularity,
    add_up,
    largest,
    pack_counts,
    pack_ids,
    pack_popular,
    unpack_counts,
    unpack_ids,
    unpack_popular,
)


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


@pytest.mark.parametrize("seed", range(4))
def test_the_leaders_that_are_kept_are_those_that_sorting_all_items_gives_also_after_a_restart(seed: int) -> None:
    source, half_life, limit = random.Random(seed), 40.0, 20
    popular, counts = Popularity(half_life, max_leaders=limit), dict[str, tuple[float, float]]()
    clock = 0.0
    for act in range(3_000):
        clock += source.choice((1.0, 1.0, 1.0, 3.0, 60.0))
        item_id = f"i{int(source.expovariate(1 / 60)) + act // 20}"  # what is popular changes all the time
        popular.add(item_id, clock)
        count, then = counts.get(item_id, (0.0, clock))
        counts[item_id] = (count * math.exp2(-(clock - then) / half_life) + 1.0, clock)
        if act % 97 == 0:
            now = {name: count * math.exp2(-(clock - then) / half_life) for name, (count, then) in counts.items()}
            assert popular.top(clock, limit) == largest(now, limit)
            assert popular.top(clock, 3) == largest(now, 3)
        if act % 501 == 0:
            popular = Popularity(half_life, popular.counts, max_leaders=limit)
    assert popular.counts == counts
    assert len(counts) > 10 * limit


def test_asking_for_the_popular_items_looks_at_no_more_of_them_when_there_are_more(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []
    monkeypatch.setattr(recall_state, "largest", lambda counts, limit: looked_at.append(len(counts)) or largest(counts, limit))
    for num_items in (1_000, 100_000):
        popular = Popularity(500.0, {f"i{item}": (1.0 + item % 7, float(item)) for item in range(num_items)})
        popular.top(float(num_items), 200)
    assert looked_at == [200, 200]


def test_neighbours_are_bounded_and_keep_the_frequent_ones() -> None:
    near = Neighbours(limit=3)
    for number in range(20):
        near.add("often")
        near.add(f"once-{number}")
    assert len(near.counts) == 3
    assert unpack_counts(near.to_bytes())[0][0] == "often"
    assert Neighbours.from_bytes(near.to_bytes(), limit=3).counts == near.counts


def test_a_popular_list_without_a_half_life_of_its_counts_is_refused() -> None:
    with pytest.raises(CorruptArtifact, match="half-life of their counts is 0"):
        unpack_popular(pack_popular(0.0, [("i", 1.0)]), 77.0, 1_000.0)
