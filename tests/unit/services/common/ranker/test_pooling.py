"""Pooled rows are the sums and means of the rows of each row's keys, and their gradients those of that sum."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from services.common.ranker.declared.encodings import Keys
from services.common.ranker.declared.row_keys import KeyedFeature, KeyedRows, RowKeys, SequenceKeys
from services.common.ranker.declared.sequences import SequenceInputs
from services.common.ranker.pooling import Pool, Pooled

USER = (KeyedFeature("city", "places", "sum", 3),)
ITEMS = (KeyedFeature("tags", "tags", "mean", 2), KeyedFeature("origin", "places", "sum", 3), KeyedFeature("words", "tags", "sum", 2))
SEQUENCE = SequenceInputs("latest", 5, (ITEMS[0], KeyedFeature("age", "ages", "sum", 4), ITEMS[1]), (ITEMS[0], ITEMS[1]))


class Plan(NamedTuple):
    user_keyed: tuple[KeyedFeature, ...] = USER
    item_keyed: tuple[KeyedFeature, ...] = ITEMS
    sequences: tuple[SequenceInputs, ...] = ()


def random_sequence(rng: np.random.Generator, lengths: list[int], num_samples: int) -> SequenceKeys:
    events = random_keys(rng, SEQUENCE.parts, sum(lengths))
    return SequenceKeys(np.asarray(lengths), events, random_keys(rng, SEQUENCE.queries, num_samples))


def random_keys(rng: np.random.Generator, features: tuple[KeyedFeature, ...], num_rows: int) -> RowKeys:
    columns = []
    for one in features:
        counts = rng.integers(0, 4, num_rows)
        keys_S = rng.integers(0, 12, counts.sum()).astype(np.uint64) + np.uint64(1 << 63)
        columns.append(Keys(one.table, one.pooling, keys_S, np.concatenate([[0], np.cumsum(counts)])))
    return RowKeys.of(columns, num_rows)


def expected_of(features: tuple[KeyedFeature, ...], keys: RowKeys, row_of: dict[str, dict[int, np.ndarray]]) -> np.ndarray:
    """Pool in plain loops and float64."""
    lines, at = [], 0
    for counts_K in keys.counts_NK.tolist():
        line: list[float] = []
        for one, count in zip(features, counts_K, strict=True):
            found = [row_of[one.table][key].astype(np.float64) for key in keys.keys_S[at : at + count].tolist()]
            at += count
            pooled = sum(found, np.zeros(one.dim))
            line += (pooled / max(count, 1) if one.pooling == "mean" else pooled).tolist()
        lines.append(line)
    return np.asarray(lines)


@pytest.mark.parametrize("seed", range(10))
def test_rows_are_pooled_by_feature_and_row(seed: int) -> None:
    rng = np.random.default_rng(seed)
    keyed = KeyedRows(random_keys(rng, USER, 3), random_keys(rng, ITEMS, 9))
    pool = Pool(Plan(), keyed)
    assert {table: len(ids) for table, ids in pool.ids.items()} == {
        "places": len(keyed.user.keys_S) + int(keyed.items.counts_NK[:, 1].sum()),
        "tags": int(keyed.items.counts_NK[:, [0, 2]].sum()),
    }
    unique = {table: np.unique(ids, return_inverse=True) for table, ids in pool.ids.items()}
    dims = {"places": 3, "tags": 2}
    rows = {table: rng.normal(size=(len(ids), dims[table])).astype(np.float32) for table, (ids, _) in unique.items()}
    places = {table: at for table, (_, at) in unique.items()}
    found = pool.pooled(rows, places)
    row_of = {table: dict(zip(ids.tolist(), rows[table], strict=True)) for table, (ids, _) in unique.items()}
    np.testing.assert_allclose(found.user_GV, expected_of(USER, keyed.user, row_of), atol=1e-6)
    np.testing.assert_allclose(found.items_BV, expected_of(ITEMS, keyed.items, row_of), atol=1e-6)
    one_by_one = pool.pooled({table: rows[table][places[table]] for table in rows})
    assert found.user_GV.tobytes() == one_by_one.user_GV.tobytes() and found.items_BV.tobytes() == one_by_one.items_BV.tobytes()
    of = Pooled.of_sides([rng.normal(size=side.shape).astype(np.float32) for side in found.sides])
    back = pool.back(of, places, {table: len(own) for table, own in rows.items()})
    # Pooling is linear: moving the rows by some step moves <of, pooled> by <back, step>.
    steps = {table: rng.normal(size=own.shape).astype(np.float32) for table, own in rows.items()}
    moved = pool.pooled({table: rows[table] + steps[table] for table in rows}, places)
    rise = sum(float((side * (after - before)).sum()) for side, after, before in zip(of.sides, moved.sides, found.sides, strict=True))
    assert rise == pytest.approx(sum(float((back[table] * steps[table]).sum()) for table in rows), abs=1e-3)


def test_a_batch_pools_each_request_as_if_it_were_alone() -> None:
    rng = np.random.default_rng(1)
    parts = [KeyedRows(random_keys(rng, USER, 1), random_keys(rng, ITEMS, count)) for count in (4, 1, 7)]
    table = {"places": rng.normal(size=(12, 3)).astype(np.float32), "tags": rng.normal(size=(12, 2)).astype(np.float32)}

    def pooled(keyed: KeyedRows) -> Pooled:
        pool = Pool(Plan(), keyed)
        return pool.pooled(table, {name: ids & 15 for name, ids in pool.ids.items()})

    together, at = pooled(KeyedRows.joined(parts)), 0
    for number, part in enumerate(parts):
        alone = pooled(part)
        assert together.user_GV[number].tobytes() == alone.user_GV[0].tobytes()
        assert together.items_BV[at : at + len(part.items)].tobytes() == alone.items_BV.tobytes()
        at += len(part.items)
    some = np.asarray([3, 0])
    assert pooled(parts[0].only(some)).items_BV.tobytes() == pooled(parts[0]).items_BV[some].tobytes()


def test_a_side_without_features_has_no_columns() -> None:
    keyed = KeyedRows(RowKeys.of([], 2), random_keys(np.random.default_rng(2), ITEMS[:1], 5))
    found = Pool(Plan((), ITEMS[:1]), keyed).pooled({"tags": np.ones((len(keyed.items.keys_S), 2), np.float32)})
    assert found.user_GV.shape == (2, 0)
    assert found.items_BV[:, 0].tolist() == (keyed.items.counts_NK[:, 0] > 0).astype(float).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_events_of_a_sequence_and_samples_share_rows_and_each_request_gets_its_own(seed: int) -> None:
    rng = np.random.default_rng(seed)
    plan, parts = Plan(sequences=(SEQUENCE,)), []
    for length, samples in ((2, 3), (0, 1), (5, 4)):
        sequence = random_sequence(rng, [length], samples)
        parts.append(KeyedRows(random_keys(rng, USER, 1), random_keys(rng, ITEMS, samples), (sequence,)))
    keyed = KeyedRows.joined(parts)
    pool = Pool(plan, keyed)
    unique = {table: np.unique(ids, return_inverse=True) for table, ids in pool.ids.items()}
    dims = {"places": 3, "tags": 2, "ages": 4}
    rows = {table: rng.normal(size=(len(ids), dims[table])).astype(np.float32) for table, (ids, _) in unique.items()}
    places = {table: at for table, (_, at) in unique.items()}
    found = pool.pooled(rows, places)
    row_of = {table: dict(zip(ids.tolist(), rows[table], strict=True)) for table, (ids, _) in unique.items()}
    ((events_PW, samples_BQ),) = found.sequences
    np.testing.assert_allclose(events_PW, expected_of(SEQUENCE.parts, keyed.sequences[0].events, row_of), atol=1e-6)
    np.testing.assert_allclose(samples_BQ, expected_of(SEQUENCE.queries, keyed.sequences[0].candidates, row_of), atol=1e-6)
    begin = 0
    for at, part in enumerate(parts):
        own = slice(begin, begin := begin + len(part.items))
        alone = Pool(plan, part)
        of_keys = {table: [row_of[table][key] for key in ids.tolist()] for table, ids in alone.ids.items()}
        apart = alone.pooled({table: np.asarray(found_rows, np.float32).reshape(-1, dims[table]) for table, found_rows in of_keys.items()})
        for one, two in zip(pool.of_request(found, at, own).sides, apart.sides, strict=True):
            assert one.tobytes() == two.tobytes()
    of = Pooled.of_sides([rng.normal(size=side.shape).astype(np.float32) for side in found.sides])
    back = pool.back(of, places, {table: len(own) for table, own in rows.items()})
    steps = {table: rng.normal(size=own.shape).astype(np.float32) for table, own in rows.items()}
    moved = pool.pooled({table: rows[table] + steps[table] for table in rows}, places)
    rise = sum(float((side * (after - before)).sum()) for side, after, before in zip(of.sides, moved.sides, found.sides, strict=True))
    assert rise == pytest.approx(sum(float((back[table] * steps[table]).sum()) for table in rows), abs=1e-3)
