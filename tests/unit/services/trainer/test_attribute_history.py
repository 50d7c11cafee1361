"""What was known when: a request sees the attributes that were written before its second, and no leak that a test plants."""

from __future__ import annotations

import csv
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.common.ranker import exposure_block
from services.common.ranker.declared.plan import NONE, Wanted
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Declared, build_features
from services.common.ranker.states import GlobalState, Interaction, merge_item_bytes
from services.trainer.attribute_history import ALWAYS_MS, AttributeHistory, Versions, known_shares
from services.trainer.batch import FeatureStates, replay
from services.trainer.event_files.attributes import read_cells
from services.trainer.event_files.history import History, read_history
from services.trainer.event_files.parts import ReadOptions
from services.trainer.event_files.places import EventFileError, Place
from services.trainer.replay_order import BatchConfig, replay_order
from tests.learning import SPEC
from tests.small_batches import batch_sizes  # noqa: F401 - each test runs with it

T = 1_700_000_000
AS_WORDS = Wanted("user", "c", "words", 1)


def spec_of(*features: dict[str, Any]) -> FeatureSpec:
    return FeatureSpec.parse(SPEC.model_dump(mode="json") | {"format": 2, "features": list(features)})


def number(name: str, expression: str, **keys: Any) -> dict[str, Any]:
    return {"raw_feature": {"feature_name": name, "expression": expression, **keys}}


def words(name: str, expression: str, *known: str) -> dict[str, Any]:
    return {"id_feature": {"feature_name": name, "expression": expression, "vocab_list": list(known)}}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def event(at: int, user: str, item: str, value: float = 4.0, **columns: Any) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "kind": "rating", "value": value, "time": T + at, **columns}


def shown(spec: FeatureSpec, history: History) -> dict[tuple[str, int, str], dict[str, float]]:
    """Replay; return every column that a sample saw, by (user, time, item)."""
    attributes = AttributeHistory(spec.plan, history.user_attributes, history.item_attributes)
    states = FeatureStates(spec, history.categories, attributes)
    config = BatchConfig(feature_lag_s=0.0)
    seen = {}
    for group in replay(spec, replay_order(history.interactions, config), list(history.categories), states, config, 0):
        features = exposure_block.decode(group.features_block, spec)
        of_user = dict(zip(spec.user_columns, features.user_U.tolist(), strict=True))
        for row, sample in enumerate(group.samples):
            of_item = dict(zip(spec.item_columns, features.items_NF[row].tolist(), strict=True))
            seen[group.user_id, group.exposed_at_ms // 1000 - T, sample.item_id] = of_user | of_item
    return seen


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_attributes_come_from_columns_of_the_events_and_hold_from_the_second_after(tmp_path: Path, suffix: str) -> None:
    spec = spec_of(words("city", "user:city", "Rome"), number("price", "item:price"), number("hour", "context:hour", default_value=0))
    rows = [
        event(0, "u", "a", city="Rome", price=5, hour=8),
        event(0, "u", "b", city="Rome", price=6, hour=9),
        event(1, "u", "c", city=None, price=7.5, hour=10),
        event(2, "u", "a", city="Oslo", price=50, hour=None),
        event(3, "v", "a", city="Rome", price=50, hour=12),
    ]
    seen = shown(spec, read_history(write(tmp_path / f"events{suffix}", rows), spec))
    city = {key[:2]: (columns["city=Rome"], columns["city.unknown"], columns["city.absent"]) for key, columns in seen.items()}
    # What an event says of its user is known one second later; an event that says nothing says that there is none.
    assert city == {("u", 0): (0, 0, 1), ("u", 1): (1, 0, 0), ("u", 2): (0, 0, 1), ("v", 3): (0, 0, 1)}
    price = {key: columns["price"] for key, columns in seen.items() if key[2] == "a"}
    assert price["u", 0, "a"] == 0 and price["u", 2, "a"] == 5 and price["v", 3, "a"] == 50
    assert {key: columns["hour"] for key, columns in seen.items() if key[0] == "v" or key[1:] == (2, "a")} == {
        key: 12 if key[0] == "v" else 0 for key in seen if key[0] == "v" or key[1:] == (2, "a")
    }


def test_a_planted_leak_is_not_seen(tmp_path: Path) -> None:
    """Columns that hold each event's own label: a reader that takes the row's own attributes would rank perfectly."""
    spec = spec_of(number("last", "user:last_rating_given"), number("verdict", "item:last_rating_got"))
    rng = np.random.default_rng(0)
    rows = []
    for at in range(200):
        value = float(rng.integers(1, 6))
        rows.append(event(at // 2, f"u{rng.integers(3)}", f"i{rng.integers(20)}", value, last_rating_given=value, last_rating_got=value))
    seen = shown(spec, read_history(write(tmp_path / "events.parquet", rows), spec))
    told = {"user": dict[str, float](), "item": dict[str, float]()}
    for second in range(100):
        now = [row for row in rows if row["time"] == T + second]
        for row in now:
            columns = seen[row["user_id"], second, row["item_id"]]
            assert columns["last"] == told["user"].get(row["user_id"], 0)
            assert columns["verdict"] == told["item"].get(row["item_id"], 0)
        told["user"] |= {row["user_id"]: row["value"] for row in now}
        told["item"] |= {row["item_id"]: row["value"] for row in now}
    chosen = [(seen[row["user_id"], row["time"] - T, row["item_id"]], row["value"]) for row in rows]
    assert sum(columns["last"] == value for columns, value in chosen) < 80, "one in five by chance"


def test_negatives_are_as_absent_as_the_chosen_one(tmp_path: Path) -> None:
    # An item's first event is where its attributes first stand. If the event saw them, absence would say "not chosen".
    spec = spec_of(number("price", "item:price"))
    rows = [event(at, f"u{at}", f"i{at}", price=1) for at in range(30)]
    seen = shown(spec, read_history(write(tmp_path / "events.parquet", rows), spec))
    for (_, at, item), columns in seen.items():
        assert columns["price.absent"] == float(int(item[1:]) >= at)


def test_files_of_users_and_items_hold_from_their_time_or_from_the_start(tmp_path: Path) -> None:
    spec = spec_of(
        number("age", "user:age"),
        words("genre", "item:genre", "war", "love"),
        {"lookup_feature": {"feature_name": "taste", "map": "user:likes", "key": "item:genre", "default_value": -1}},
    )
    events = write(tmp_path / "events.csv", [event(10, "u", "a"), event(20, "u", "b"), event(30, "u", "a")])
    users = write(tmp_path / "users.parquet", [{"user_id": "u", "age": 30, "likes": ["war:2", "love:0.5"]}])
    versions = [
        {"item_id": "a", "genre": ["war"], "time": T + 5},
        {"item_id": "a", "genre": ["war", "love"], "time": T + 30},
        {"item_id": "b", "genre": ["love"], "time": T + 21},
    ]
    history = read_history(events, spec, ReadOptions(users=users, items=write(tmp_path / "items.parquet", versions)))
    seen = shown(spec, history)
    assert {columns["age"] for columns in seen.values()} == {30}
    assert [(seen[key]["genre=war"], seen[key]["genre=love"], seen[key]["taste"]) for key in sorted(seen) if key[2] == "a"] == [
        (1, 0, 2) for key in sorted(seen) if key[2] == "a"
    ]
    assert seen["u", 20, "b"]["genre.absent"] == 1 and seen["u", 20, "b"]["taste"] == -1
    assert any("attributes of 1 users in 1 versions" in note for note in history.notes)


def test_a_batch_row_is_the_bits_of_a_request() -> None:
    spec = spec_of(
        words("city", "user:city", "Rome"),
        number("price", "item:price", normalizer="method=log10"),
        {"expr_feature": {"feature_name": "fit", "expression": "price / budget", "variables": ["feature:price", "context:budget"]}},
    )
    users = Versions([("u", ALWAYS_MS, {"city": "Rome"})])
    items = Versions([("a", ALWAYS_MS, {"price": 3.7}), ("b", 2_000, {"price": 11})])
    shown_at = Interaction("u", "a", "rating", 4.0, 2_500, {"budget": 0.3})
    batch = FeatureStates(spec, {"a": (), "b": ()}, AttributeHistory(spec.plan, users, items)).features("u", ["a", "b", "c"], shown_at)
    declared = Declared.of(spec.plan, {"city": "Rome"}, {"budget": 0.3}, spec.plan.items([{"price": 3.7}, NONE, NONE]))
    nothing = merge_item_bytes(spec, [[None] * 3], [GlobalState()])
    request = build_features(spec, "u", None, nothing, [()] * 3, GlobalState(), declared)
    assert exposure_block.encode(batch, spec.schema_hash) == exposure_block.encode(request, spec.schema_hash)
    assert request.items_NF[0, -2:].tolist() == pytest.approx([np.log10(3.7) / 0.3, 0], rel=1e-3)


def test_the_categories_of_the_catalogue_are_an_attribute_of_items(tmp_path: Path) -> None:
    spec = spec_of(words("genre", "item:categories", "War", "Love"))
    rows = [event(0, "u", "a", categories="War|Love"), event(5, "u", "b", categories="")]
    seen = shown(spec, read_history(write(tmp_path / "events.csv", rows), spec))
    assert {key[2]: (columns["genre=War"], columns["genre=Love"], columns["genre.absent"]) for key, columns in seen.items()} == {
        "a": (1, 1, 0),
        "b": (0, 0, 1),
    }


@pytest.mark.parametrize(
    ("columns", "features", "says"),
    [
        ({}, [number("age", "user:age")], "column 'age' .or 'user:age'. is missing, and a feature of the spec reads user:age; .*--users"),
        ({}, [number("h", "context:h")], "column 'h' .or 'context:h'. is missing, .* reads context:h; write the column$"),
        ({"age": "old"}, [number("age", "user:age")], "column 'age', row 1: 'old' is no number"),
        ({"age": [1.0, 2.0]}, [number("age", "user:age")], "column 'age', row 1: .* cannot be read as user:age: .* is no number"),
        ({"v": [1.0, 2.0]}, [number("v", "item:v", value_dim=3)], "column 'v', row 1: .* a list of 2 is no list of 3 numbers"),
        (
            {"x": 1},
            [number("a", "user:x"), number("b", "item:x")],
            "column 'x': features read it of two sides; name the columns user:x, item:x",
        ),
    ],
)
def test_a_column_that_is_absent_or_of_another_type_is_refused_by_name(
    tmp_path: Path, columns: dict[str, Any], features: list[dict[str, Any]], says: str
) -> None:
    path = write(tmp_path / "events.parquet", [event(0, "u", "a", **columns)])
    with pytest.raises(EventFileError, match=says) as caught:
        read_history(path, spec_of(*features))
    assert str(path) in str(caught.value)


def test_a_file_of_items_without_a_field_is_refused_by_name(tmp_path: Path) -> None:
    events = write(tmp_path / "events.parquet", [event(0, "u", "a")])
    items = write(tmp_path / "items.csv", [{"item_id": "a", "cost": 1}])
    with pytest.raises(EventFileError, match=r"items\.csv: column 'price' is missing; wanted: item_id, price\[, time\]"):
        read_history(events, spec_of(number("price", "item:price")), ReadOptions(items=items))


def test_columns_with_a_side_keep_two_fields_of_one_name_apart(tmp_path: Path) -> None:
    spec = spec_of(number("a", "user:x"), number("b", "item:x"), number("c", "context:x"))
    rows = [event(at, "u", "i", **{"user:x": 1, "item:x": 2, "context:x": 3}) for at in (0, 1)]
    seen = shown(spec, read_history(write(tmp_path / "events.parquet", rows), spec))
    assert [seen["u", 1, "i"][name] for name in "abc"] == [1, 2, 3]


def test_folders_of_a_file_of_items_are_columns(tmp_path: Path) -> None:
    spec = spec_of(number("price", "item:price"), words("land", "item:land", "de"))
    for day, price in (("2023-11-15", 1), ("2023-11-16", 2)):
        folder = tmp_path / "items" / f"time={day}" / "land=de"
        folder.mkdir(parents=True)
        write(folder / "0.parquet", [{"item_id": "a", "price": price}])
    events = write(tmp_path / "events.csv", [event(0, "u", "a"), event(172_800, "u", "a")])
    seen = shown(spec, read_history(events, spec, ReadOptions(items=tmp_path / "items")))
    assert [(seen["u", at, "a"]["price"], seen["u", at, "a"]["land=de"]) for at in (0, 172_800)] == [(0, 0), (2, 1)]


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        (pa.array([[("a", 2.0)], None, []], pa.map_(pa.string(), pa.float64())), [{"a": 2.0}, None, {}]),
        (pa.array([[("x", [("p", 1.0)])]], pa.map_(pa.string(), pa.map_(pa.string(), pa.float64()))), [{"x": {"p": 1.0}}]),
        (pa.array([{"a": 1}, {"b": 2}]), [{"a": 1}, {"b": 2}]),
        (pa.array([Decimal(2**63 + 1), None], pa.decimal128(20, 0)), [2**63 + 1, None]),
        (pa.array([1_700_000_000_123_456, None], pa.timestamp("us")), [1_700_000_000_123, None]),
        (pa.array([1_700_000_000, None], pa.timestamp("s")), [1_700_000_000_000, None]),
        (pa.array([1.5, float("nan")]), [1.5, None]),
    ],
)
def test_typed_cells_are_values_or_nothing(column: Any, cells: list[Any]) -> None:
    assert read_cells(column, Place("f", "c"), [AS_WORDS]) == cells


@pytest.mark.parametrize("text", ["[SOLVED] how", "['90s Hits]", "[a, b]", "['a' 'b']"])
def test_texts_in_brackets_that_are_no_list_are_texts(text: str) -> None:
    assert read_cells(pa.array([text]), Place("f", "c"), [AS_WORDS]) == [text]


def test_cells_of_text_are_numbers_lists_or_missing_as_their_reader_wants(tmp_path: Path) -> None:
    spec = spec_of(
        number("n", "context:n"), number("v", "context:v", value_dim=2), words("w", "context:w", "a", "b"), words("m", "context:n", "7")
    )
    cells = [
        ({"n": " 7.0 ", "v": "[1, 2.5]", "w": '["a", "b"]'}, (7, 1, 2.5, 1, 1, 1)),
        ({"n": "NA", "v": "", "w": "nan"}, (0, 0, 0, 0, 0, 0)),
        ({"n": "7", "v": "[1, 2.5]", "w": "['a', 'b']"}, (7, 1, 2.5, 1, 1, 1)),
    ]
    rows = [event(at, "u", f"i{at}", **columns) for at, (columns, _) in enumerate(cells)]
    seen = shown(spec, read_history(write(tmp_path / "events.csv", rows), spec))
    for at, (_, expected) in enumerate(cells):
        columns = seen["u", at, f"i{at}"]
        assert tuple(columns[name] for name in ("n", "v.0", "v.1", "w=a", "w=b", "m=7")) == expected


def test_versions_are_known_from_the_second_after_they_were_written() -> None:
    versions = Versions([("u", 1_500, {"x": 1}), ("u", 2_000, {"x": 1}), ("u", 7_999, {"x": 2})])
    assert len(versions.rows) == 3, "an equal version is none"
    assert [versions.row("u", at) for at in (0, 1_500, 1_999, 2_000, 7_999, 8_000, 10**12)] == [0, 0, 0, 1, 1, 2, 2]
    assert versions.row("nobody", 10**12) == 0


def test_categories_that_no_file_gives_are_not_known(tmp_path: Path) -> None:
    spec = spec_of(words("genre", "item:categories", "a", "b"))
    for name, columns, share in (("without", {}, 0.0), ("with", {"categories": "a|b"}, 1.0)):
        history = read_history(write(tmp_path / f"{name}.csv", [event(second, "u", "i", **columns) for second in range(4)]), spec)
        known = known_shares(spec.plan, history.interactions, history.user_attributes, history.item_attributes)
        assert known == {"item:categories": share}


def test_how_often_a_field_was_known_is_counted_when_the_event_happened(tmp_path: Path) -> None:
    """D99: the first event of a user knows nothing of what it says itself; and a field that files have under another meaning is seen."""
    features = (number("price", "item:price"), number("age", "user:age"), number("hour", "context:hour"))
    rows = [
        event(second, user, "i", price=1, age=5, hour=hour)
        for second, (user, hour) in enumerate((("u", 1), ("u", ""), ("u", ""), ("v", "")))
    ]
    spec = spec_of(*features)
    history = read_history(write(tmp_path / "events.csv", rows), spec)
    known = known_shares(spec.plan, history.interactions, history.user_attributes, history.item_attributes)
    assert known == {"item:price": 0.75, "user:age": 0.5, "context:hour": 0.25}
    assert known_shares(spec.plan, [], history.user_attributes, history.item_attributes) == dict.fromkeys(known, 0.0)
