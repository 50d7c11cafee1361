"""The offline store for other models: no row knows its own moment, and what a row says is what the ranker had then."""

from __future__ import annotations

import math
import runpy
import sys
import types
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import yaml

from services.common.ranker.columns import ITEM_COLUMNS, USER_COLUMNS, item_names
from services.trainer.batch import FeatureStates
from services.trainer.feature_export.feast_repo import definitions, store
from services.trainer.feature_export.main import main
from services.trainer.feature_export.rows import counter_rows
from services.trainer.feature_export.views import Column, View, views_of
from tests.feature_exports import FIRST_S, written
from tests.learning import CATEGORIES, KEYED, SPEC, interactions, with_features

pytestmark = pytest.mark.ml


def at(seconds: int) -> pd.Timestamp:
    return pd.Timestamp(datetime.fromtimestamp(seconds, UTC))


def test_an_event_is_joined_with_what_was_known_before_its_second(tmp_path: Path) -> None:
    """By a counter that nobody else's acts move."""
    views = written(tmp_path)
    plain = views["user_counters"].sort_values("event_timestamp")
    acts: dict[str, int] = defaultdict(int)
    events = pd.DataFrame({"user_id": one.user_id, "second": FIRST_S + one.time_ms // 5_000} for one in interactions(300))
    for second, block in events.groupby("second"):
        for user_id in block["user_id"]:
            known = plain[(plain["user_id"] == user_id) & (plain["event_timestamp"] <= at(second))].tail(1)
            expected = 0.25 * math.log1p(acts[user_id]) if acts[user_id] else math.nan
            assert known["log_count"].tolist() == pytest.approx([expected], rel=1e-3, nan_ok=True)
        for user_id in block["user_id"]:
            acts[user_id] += 1
    assert not views["user_counters"].duplicated(["user_id", "event_timestamp"]).any()
    assert not views["item_counters"].duplicated(["item_id", "event_timestamp"]).any()


def test_a_row_is_what_a_request_of_that_moment_would_have_had() -> None:
    views = [view for view in views_of(SPEC) if view.name.endswith("_counters")]
    acts, states = interactions(120), FeatureStates(SPEC, CATEGORIES)
    found = {(view.side, row.entity_id, row.from_s): row.values for view, row in counter_rows(SPEC, acts, CATEGORIES, views)}
    names = {"user": [one.name for one in USER_COLUMNS], "item": list(item_names(SPEC.counters.half_lives_events))}
    of_pairs = {name for column in ITEM_COLUMNS if column.is_of_pair for name in column.names(SPEC.counters.half_lives_events)}
    for act in acts:  # each in a second of its own
        states.apply(act)
        asked = states.features(act.user_id, [act.item_id])
        for side, entity_id, numbers in (("user", act.user_id, asked.user_U), ("item", act.item_id, asked.items_NF[0])):
            known = dict(zip(names[side], numbers.tolist(), strict=True))
            expected = tuple(known[name] for name in names[side] if side == "user" or name not in of_pairs)
            assert found[side, entity_id, act.time_ms // 1000 + 1] == expected


def test_a_column_that_is_of_an_item_alone_is_the_same_for_every_user_and_the_others_are_not() -> None:
    states = FeatureStates(SPEC, CATEGORIES)
    for act in interactions(200):
        states.apply(act)
    one, other = (states.features(user, ["3", "4", "40"]).items_NF for user in ("u1", "nobody"))
    names = item_names(SPEC.counters.half_lives_events)
    of_pairs = [name for column in ITEM_COLUMNS if column.is_of_pair for name in column.names(SPEC.counters.half_lives_events)]
    assert [name for at, name in enumerate(names) if (one[:, at] != other[:, at]).any()] == of_pairs


def test_attributes_hold_from_the_second_behind_they_were_written(tmp_path: Path) -> None:
    views = written(tmp_path, acts=60)
    city = views["user_attributes"].set_index("user_id")
    of_u1 = list(zip(city.loc["u1", "event_timestamp"], city.loc["u1", "city"], strict=True))
    assert [(time, words if words is None else list(words)) for time, words in of_u1] == [
        (at(0), None),
        (at(FIRST_S - 9), ["Rome"]),
        (at(FIRST_S + 21), ["Oslo"]),
    ]
    assert city.loc["u2", "city"].tolist() == [None, None]
    items = views["item_attributes"].set_index("item_id")
    assert (items.loc["7", "price"], list(items.loc["7", "pic_ture"]), items.loc["7", "event_timestamp"]) == (7.0, [1.0, 3.5], at(0))
    assert items.loc["0", "pic_ture"] is None
    assert set(views) == {"user_counters", "item_counters", "user_attributes", "item_attributes"}, "no request has a view"


def test_the_definitions_name_every_column_with_its_type_and_what_the_ranker_calls_it(tmp_path: Path, monkeypatch: Any) -> None:
    """Run by a stand-in that keeps what it is told; tests/integration/trainer/test_feast.py has the real one."""
    views = written(tmp_path, acts=60)
    made = _told(tmp_path / "made" / "feast" / "features.py", monkeypatch)
    assert {name: [field["name"] for field in view["schema"]] for name, view in made.items()} == {
        name: [column for column in frame.columns if column not in ("user_id", "item_id", "event_timestamp")]
        for name, frame in views.items()
    }
    types_of = {field["name"]: field["dtype"] for field in made["item_attributes"]["schema"]}
    assert types_of == {"price": "Float64", "pic_ture": "Array(Float64)"}
    assert {field["name"]: field.get("tags") for field in made["item_attributes"]["schema"]}["pic_ture"] == {"tunemesh": "pic ture"}
    assert yaml.safe_load((tmp_path / "made" / "feast" / "feature_store.yaml").read_text())["project"] == "ranker"


def _told(path: Path, monkeypatch: Any) -> dict[str, Any]:
    def kept(**given: Any) -> dict[str, Any]:
        return given

    stand_in, of_types = types.ModuleType("feast"), types.ModuleType("feast.types")
    for name in ("Entity", "FeatureView", "Field", "FileSource"):
        setattr(stand_in, name, kept)
    stand_in.ValueType = types.SimpleNamespace(STRING="STRING")
    of_types.__dict__.update({name: name for name in ("Float32", "Float64", "String")}, Array=lambda one: f"Array({one})")
    monkeypatch.setitem(sys.modules, "feast", stand_in)
    monkeypatch.setitem(sys.modules, "feast.types", of_types)
    found = runpy.run_path(str(path))
    return {name: one for name, one in found.items() if isinstance(one, dict) and "schema" in one}


def test_names_that_feast_does_not_take_are_changed_and_stay_apart() -> None:
    features = [
        {"raw_feature": {"feature_name": f"f{number}", "expression": f"item:{field}"}}
        for number, field in enumerate(("a b", "a.b", "a_b", "__x", "東京", "item_id"))
    ]
    view = next(view for view in views_of(with_features(features)) if view.name == "item_attributes")
    assert [(column.is_called, column.name) for column in view.columns] == [
        ("a b", "a_b"), ("a.b", "a_b_2"), ("a_b", "a_b_3"), ("__x", "x"), ("東京", "feature"), ("item_id", "item_id_2")
    ]  # fmt: skip


def test_text_in_definitions_ends_no_string() -> None:
    view = View("v", "item", [Column("a", 'a"\n\\b', pa.float32())])
    text = definitions([view], 'shop"""\nimport os\\')
    compile(text, "features.py", "exec")
    assert text.count('"""') == 2
    assert store("my ranker!").splitlines()[1] == "project: my_ranker"


def test_an_export_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, acts=60)
    arguments = [
        "--data",
        str(tmp_path / "events.parquet"),
        "--spec",
        str(tmp_path / "spec.yaml"),
        "--out",
        str(tmp_path / "made" / "feast"),
    ]
    assert main(arguments) == 2
    assert "holds an export already; choose another folder" in capsys.readouterr().err


def test_a_spec_of_keyed_features_exports_the_fields_that_they_read() -> None:
    fields = {view.name: [column.is_called for column in view.columns] for view in views_of(with_features(KEYED))}
    assert fields["user_attributes"] == ["city"] and fields["item_attributes"] == ["tags", "origin"]
