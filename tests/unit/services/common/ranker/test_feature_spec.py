from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from services.common.platform.errors import ConfigurationError
from services.common.ranker import columns
from services.common.ranker.feature_spec import FeatureSpec

SHIPPED = Path("model_repo/ranker/feature_spec.yaml")


def shipped() -> dict[str, Any]:
    return copy.deepcopy(yaml.safe_load(SHIPPED.read_text()))


def test_the_shipped_spec_loads_and_names_both_tasks() -> None:
    spec = FeatureSpec.load(SHIPPED)
    assert spec.task_names == ("interact", "like")
    assert spec.table_dims.keys() == {"user", "item"}
    assert len(bytes.fromhex(spec.schema_hash)) == 8


@pytest.mark.parametrize(("key", "value"), [("dense_rates", 0.1), ("dense_rate", 0), ("dense_rate", "fast"), ("user_rate", float("inf"))])
def test_a_rate_that_is_none_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"key learning.{key}: "):
        FeatureSpec.parse(shipped() | {"learning": {key: value}})
    assert FeatureSpec.parse(shipped() | {"learning": {"dense_rate": 0.1}}).learning.given() == {"dense_rate": 0.1}


def test_the_schema_hash_follows_meaning_and_ignores_rates_and_admission() -> None:
    base = FeatureSpec.parse(shipped())
    same = shipped()
    same["negatives"]["keep_rate"] = 0.5
    same["negatives"]["source"] = "impressions"
    same["blend"]["like"] = 2.0
    same["tables"]["item"]["admission"]["min_count"] = 3
    same["learning"] = {"dense_rate": 0.003, "user_rate": 0.2}
    assert FeatureSpec.parse(same).schema_hash == base.schema_hash
    other = shipped()
    other["tables"]["item"]["dim"] = other["tables"]["user"]["dim"] = 32
    assert FeatureSpec.parse(other).schema_hash != base.schema_hash


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("tables", "item", "dmi"), 3, "tables.item.dmi"),
        (("tables", "user", "dim"), 8, "dim must be equal"),
        (("negatives", "keep_rate"), 0, "negatives.keep_rate"),
        (("negatives", "source"), "guesses", "negatives.source"),
        (("kinds", "impression"), {}, "kinds.impression: every mesh knows this kind"),
        (("blend", "likes"), 1.0, "'likes' is not a task"),
        (("kinds", "rating", "value_range"), [5, 1], "kinds.rating"),
        (("counters", "half_lives_events"), [500, 50], "counters"),
        (("format",), 3, "format"),
    ],
)
def test_a_mistake_is_refused_in_one_line_that_names_the_key(path: tuple[str, ...], value: object, named: str) -> None:
    raw = shipped()
    at = raw
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(ConfigurationError, match=named) as caught:
        FeatureSpec.parse(raw, source="x.yaml")
    assert "x.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_of_an_unknown_kind_is_refused() -> None:
    raw = shipped()
    raw["tasks"][1]["labels"] = {"thumb": 1}
    with pytest.raises(ConfigurationError, match="'thumb' is not in kinds"):
        FeatureSpec.parse(raw)


def test_a_missing_or_broken_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.yaml"):
        FeatureSpec.load(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigurationError, match="not YAML"):
        FeatureSpec.load(tmp_path / "bad.yaml")


def test_values_are_put_on_a_zero_to_one_scale_and_clamped() -> None:
    spec = FeatureSpec.load(SHIPPED)
    assert [spec.normalised("rating", value) for value in (1, 3, 5, 9)] == [0.0, 0.5, 1.0, 1.0]
    assert spec.normalised("click", 1) is None
    assert spec.normalised("nonsense", 1) is None


def test_the_blend_multiplies_powers_of_the_task_probabilities() -> None:
    spec = FeatureSpec.load(SHIPPED)
    probabilities = np.asarray([[0.5, 0.25], [0.1, 1.0]], dtype=np.float32)
    expected = probabilities[:, 0] ** spec.blend["interact"] * probabilities[:, 1] ** spec.blend["like"]
    np.testing.assert_allclose(spec.blended(probabilities), expected, rtol=1e-5)


def test_more_columns_a_side_than_an_exposure_block_holds_are_refused_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    many = tuple(columns.UserColumn(f"column_{number}", lambda user: 0.0) for number in range(256))
    monkeypatch.setattr(columns, "USER_COLUMNS", many)
    with pytest.raises(ConfigurationError, match="they make 256 user columns; an exposure block holds 255 a side"):
        FeatureSpec.load(SHIPPED)
    monkeypatch.setattr(columns, "USER_COLUMNS", many[:255])
    assert len(FeatureSpec.load(SHIPPED).user_columns) == 255
