"""The tables of columns: their names are in the schema hash, and their values are those that stored models were trained on.

`python -m tests.unit.services.common.ranker.test_columns` records the values anew, for a column whose meaning is meant to change.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from services.common.ranker import columns
from services.common.ranker.columns import ITEM_COLUMNS, USER_COLUMNS, ItemColumn, UserColumn
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Features, build_features
from services.common.ranker.states import GlobalState, Interaction, ItemState, UserState, merge_globals, merge_item_bytes

SPEC_FILE = Path("model_repo/ranker/feature_spec.yaml")
# What `recorded_cases` gave when the recording was made: the names of the columns and their float16 values, by the number of the case.
RECORDING = Path(__file__).with_name("recorded_features.npz")
NUM_CASES = 12


def spec_with(**changed: Any) -> FeatureSpec:
    return FeatureSpec.parse({**yaml.safe_load(SPEC_FILE.read_text()), **changed})


def test_the_names_of_the_columns_are_the_specs_with_one_column_a_half_life() -> None:
    spec = spec_with(counters={"half_lives_events": [10, 2500.5]})
    assert spec.user_columns == tuple(column.name for column in USER_COLUMNS)
    at = spec.item_columns.index("log_rate_10")
    assert spec.item_columns[at : at + 4] == ("log_rate_10", "log_rate_2500.5", "mean_10", "mean_2500.5")
    assert len(spec.item_columns) == len(ITEM_COLUMNS) + sum("{half_life}" in column.name for column in ITEM_COLUMNS)


def test_no_two_columns_of_a_side_have_one_name() -> None:
    spec = FeatureSpec.load(SPEC_FILE)
    for names in (spec.user_columns, spec.item_columns):
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("table", "changed"),
    [
        ("ITEM_COLUMNS", ITEM_COLUMNS[::-1]),
        ("ITEM_COLUMNS", (ITEM_COLUMNS[1], ITEM_COLUMNS[0], *ITEM_COLUMNS[2:])),
        ("ITEM_COLUMNS", (ITEM_COLUMNS[0]._replace(name="log_acts"), *ITEM_COLUMNS[1:])),
        ("ITEM_COLUMNS", (*ITEM_COLUMNS, ItemColumn("another", lambda view: view.rated_N))),
        ("ITEM_COLUMNS", ITEM_COLUMNS[:-1]),
        ("USER_COLUMNS", USER_COLUMNS[::-1]),
        ("USER_COLUMNS", (USER_COLUMNS[0]._replace(name="log_acts"), *USER_COLUMNS[1:])),
        ("USER_COLUMNS", (*USER_COLUMNS, UserColumn("another", lambda user: float(len(user.categories))))),
    ],
    ids=["items reversed", "items swapped", "item renamed", "item added", "item removed", "users reversed", "user renamed", "user added"],
)
def test_a_column_that_is_moved_renamed_added_or_removed_changes_the_schema_hash(
    monkeypatch: pytest.MonkeyPatch, table: str, changed: tuple[Any, ...]
) -> None:
    before = FeatureSpec.load(SPEC_FILE).schema_hash
    assert FeatureSpec.load(SPEC_FILE).schema_hash == before
    monkeypatch.setattr(columns, table, changed)
    assert FeatureSpec.load(SPEC_FILE).schema_hash != before


def test_a_column_cannot_pass_from_the_users_table_to_the_items_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last user column before the first item column: the same names in the same order, on another side."""
    before = FeatureSpec.load(SPEC_FILE).schema_hash
    monkeypatch.setattr(columns, "USER_COLUMNS", USER_COLUMNS[:-1])
    monkeypatch.setattr(columns, "ITEM_COLUMNS", (ItemColumn(USER_COLUMNS[-1].name, lambda view: view.mean_N), *ITEM_COLUMNS))
    assert FeatureSpec.load(SPEC_FILE).schema_hash != before


def recorded_cases() -> Iterator[tuple[FeatureSpec, Features]]:
    """Seeded histories of a stream: one to four half-lives, one to three partitions, unknown users and items among them."""
    specs = [
        spec_with(),
        spec_with(counters={"half_lives_events": [100]}, history={"length": 3}),
        spec_with(counters={"half_lives_events": [10, 200, 5000, 123456.5], "max_user_categories": 2}, history={"length": 7}),
    ]
    for case in range(NUM_CASES):
        spec = specs[case % len(specs)]
        yield spec, features_of(spec, random.Random(case))


def features_of(
    spec: FeatureSpec, source: random.Random, *, opinion: Callable[[float], float] = float, has_categories: bool = True
) -> Features:
    num_partitions = source.randint(1, 3)
    genres = [f"genre-{number}" for number in range(source.choice([1, 3, 18]))]
    items = [f"item-{number}" for number in range(source.choice([1, 7, 30]))]
    categories = {item: source.sample(genres, source.randint(0, min(4, len(genres)))) for item in items}
    categories = categories if has_categories else {item: [] for item in items}
    totals = [GlobalState(partitions=num_partitions) for _ in range(num_partitions)]
    item_states: list[dict[str, ItemState]] = [{} for _ in range(num_partitions)]
    users: dict[str, UserState] = {}
    for offset in range(source.choice([0, 1, 40, 400])):
        partition = source.randrange(num_partitions)
        kind = source.choice(["rating", "click"])
        act = Interaction(f"user-{source.randrange(5)}", source.choice(items), kind, opinion(source.uniform(0.5, 5.5)), offset)
        totals[partition].apply(spec, act, categories[act.item_id], offset)
        item_states[partition].setdefault(act.item_id, ItemState()).apply(spec, act, totals[partition].clock, offset)
        users.setdefault(act.user_id, UserState()).apply(spec, act, categories[act.item_id], offset)
    asked = [*source.sample(items, source.randint(1, len(items))), "never seen"]
    packed = [[states[item].to_bytes(spec) if item in states else None for item in asked] for states in item_states]
    merged = merge_item_bytes(spec, [[None] * len(asked), *packed], [None, *totals])
    user = f"user-{source.randrange(6)}"
    return build_features(spec, user, users.get(user), merged, [categories.get(item, []) for item in asked], merge_globals(totals))


def record() -> None:
    arrays = {}
    for case, (spec, features) in enumerate(recorded_cases()):
        arrays |= {f"{case}.user": features.user_U[None, :], f"{case}.user.names": np.array(spec.user_columns)}
        arrays |= {f"{case}.items": features.items_NF, f"{case}.items.names": np.array(spec.item_columns)}
    np.savez_compressed(RECORDING, **arrays)


def test_values_are_the_recorded_ones() -> None:
    """A stored model reads these columns: they may not drift. Another processor's logarithm may differ in float16's last place."""
    with np.load(RECORDING) as recording:
        for case, (spec, features) in enumerate(recorded_cases()):
            for side, names, rows in (
                ("user", spec.user_columns, features.user_U[None, :]),
                ("items", spec.item_columns, features.items_NF),
            ):
                recorded = dict(zip(recording[f"{case}.{side}.names"], recording[f"{case}.{side}"].T, strict=True))
                assert rows.dtype == np.float16
                for name, column in recorded.items():
                    assert name in names, f"column {name} is gone: if that is meant, record anew"
                    np.testing.assert_array_max_ulp(rows[:, names.index(name)], column, maxulp=1, dtype=np.float16)
        assert len(recording.files) == 4 * NUM_CASES


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("feedback:value", lambda spec, seed: features_of(spec, random.Random(seed), opinion=lambda value: value**2 / 5.5)),
        ("item:categories", lambda spec, seed: features_of(spec, random.Random(seed), has_categories=False)),
    ],
)
def test_columns_read_what_they_say_they_read(field: str, other: Callable[[FeatureSpec, int], Features]) -> None:
    """What changes when nothing but one field changes are those columns that name the field."""
    spec = spec_with()
    changed: set[str] = set()
    for seed in range(40):
        before, after = features_of(spec, random.Random(seed)), other(spec, seed)
        changed |= {f"user.{spec.user_columns[at]}" for at in np.flatnonzero(before.user_U != after.user_U)}
        changed |= {f"item.{spec.item_columns[at]}" for at in np.flatnonzero((before.items_NF != after.items_NF).any(axis=0))}
    half_lives = spec.counters.half_lives_events
    named = {f"user.{column.name}" for column in USER_COLUMNS if field in column.reads}
    named |= {f"item.{name}" for column in ITEM_COLUMNS if field in column.reads for name in column.names(half_lives)}
    assert changed == named


if __name__ == "__main__":
    record()
