"""Parts of items that were computed before are what a plan computes of the items now."""

from __future__ import annotations

import random

import numpy as np
import pytest

from services.common.ranker.declared.encodings import Keys
from services.common.ranker.declared.inputs import WrongValue
from services.common.ranker.declared.item_parts import ItemParts
from services.common.ranker.declared.plan import NONE, Plan
from services.common.ranker.declared.values import Words
from tests.random_features import RandomFeatures


def same(plan: Plan, parts: ItemParts, made: RandomFeatures, known: dict[str, dict[str, object]], asked: list[str]) -> None:
    events = plan.events([made.row("user")], [made.row("context")])
    rows, zeros = np.arange(len(asked)), np.zeros(len(asked), np.int64)
    expected = plan.numbers(events, plan.items([known.get(item, NONE) for item in asked]), zeros, rows)
    found = plan.numbers(events, parts.part(asked), zeros, rows)
    assert found.tobytes() == expected.tobytes(), made.raw
    now, kept = (
        plan.run(events, items, zeros, rows).pair_keys
        for items in (plan.items([known.get(item, NONE) for item in asked]), parts.part(asked))
    )
    assert {name: keys_of(keys) for name, keys in kept.items()} == {name: keys_of(keys) for name, keys in now.items()}, made.raw


def keys_of(keys: Keys) -> tuple[str, str, list[int], list[int]]:
    return keys.table, keys.pooling, keys.keys_S.tolist(), keys.offsets.tolist()


@pytest.mark.parametrize("seed", range(15))
def test_kept_parts_are_those_of_the_present_attributes_through_changes_and_removals(seed: int) -> None:
    made, rng = RandomFeatures(3_000 + seed), random.Random(seed)
    plan = Plan(made.features)
    parts, known = ItemParts(plan), dict[str, dict[str, object]]()
    for _ in range(30):
        changed = {f"i{rng.randrange(40)}": made.row("item") for _ in range(rng.randint(0, 9))}
        parts.put(changed)
        known |= changed
        gone = f"i{rng.randrange(40)}"
        parts.remove(gone)
        known.pop(gone, None)
        same(plan, parts, made, known, [f"i{rng.randrange(45)}" for _ in range(rng.randint(1, 12))])
    assert len(parts) == len(known)


def test_room_grows_with_the_catalogue_and_not_with_its_changes() -> None:
    made = RandomFeatures(3_003)
    plan = Plan(made.features)
    parts = ItemParts(plan)
    known = {f"i{at}": made.row("item") for at in range(3_000)}
    parts.put(known)
    same(plan, parts, made, known, ["i0", "i2999", "nobody"])
    for _ in range(3):
        parts.put(known)
    room = len(parts._numbers)
    for _ in range(30):
        parts.put(known)
    assert len(parts._numbers) == room < 5 * 3_000


def test_items_of_another_type_are_refused_and_change_nothing() -> None:
    plans = (Plan(RandomFeatures(seed).features) for seed in range(100))
    plan, field = next((plan, one.field) for plan in plans for one in plan.wanted if (one.cast, one.side) == ("numbers", "item"))
    parts = ItemParts(plan)
    with pytest.raises(WrongValue, match=field):
        parts.put({"a": {}, "b": {field: "no number"}})
    assert len(parts) == 0


def test_a_part_of_the_rows_has_only_the_words_in_use() -> None:
    words = Words.of([["a"], ["b", "c"], [], ["a", "d"]])
    part = words.take(np.asarray([3, 2]))
    assert (part.lists(), part.vocabulary) == ([["a", "d"], []], ("a", "d"))
    assert words.take(np.asarray([2])).lists() == [[]]
    assert words.take(np.arange(4)).lists() == words.lists()
