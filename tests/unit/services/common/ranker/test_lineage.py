"""Where features come from. That columns read what they say they read: test_columns.py."""

from __future__ import annotations

import pytest

from services.common.platform.errors import CorruptArtifact, InvalidInput
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.lineage import find, lineages, lineages_of_artifact, sources_of
from services.common.ranker.spec_description import Description, described
from tests.unit.services.common.ranker.test_columns import SPEC_FILE, spec_with

FEATURES = [
    {"id_feature": {"feature_name": "city", "expression": "user:city", "vocab_list": ["Rome", "Oslo"]}},
    {"raw_feature": {"feature_name": "price", "expression": "item:price"}},
    {"raw_feature": {"feature_name": "hour", "expression": "context:hour", "boundaries": [6, 18], "default_value": 0}},
    {"expr_feature": {"feature_name": "night_price", "expression": "price * hour", "variables": ["feature:price", "context:hour"]}},
    {"combo_feature": {"feature_name": "city_tag", "expression": ["feature:city", "item:tags"], "hash_bucket_size": 8}},
    {"raw_feature": {"feature_name": "hidden", "expression": "user:budget", "stub_type": True}},
]
SPEC = spec_with(format=2, features=FEATURES)


def test_a_declared_feature_has_its_columns_and_all_fields_behind_those_that_it_reads() -> None:
    found = {one.name: one for one in lineages(SPEC)}
    assert found["city"].makes == tuple(f"user.{name}" for name in SPEC.user_columns if name.startswith("city"))
    assert [source.reference for source in found["night_price"].sources] == ["context:hour", "item:price"]
    assert found["night_price"].reads == ("price",)
    assert [(source.reference, source.topic) for source in found["city_tag"].sources] == [
        ("item:tags", "catalog.v1"),
        ("user:city", "profiles.v1"),
    ]
    assert found["hidden"].makes == ()
    assert all(made.startswith("item.") for made in found["city_tag"].makes)


def test_a_sequence_makes_rows_of_its_tables_from_the_events_and_what_their_items_are_described_by() -> None:
    parts = [
        {"raw_feature": {"feature_name": "age", "expression": "sequence:age", "boundaries": [60], "embedding_dim": 4}},
        {"id_feature": {"feature_name": "cost", "expression": "feature:price", "embedding_dim": 4, "embedding_name": "prices"}},
    ]
    spec = spec_with(format=2, features=[FEATURES[1], {"sequence_feature": {"sequence_name": "latest", "features": parts}}])
    (found,) = (one for one in lineages(spec) if one.name == "latest")
    assert (found.kind, found.makes, found.reads) == ("sequence_feature", ("table latest__age", "table prices"), ("price",))
    assert [(one.reference, one.topic) for one in found.sources] == [("item:price", "catalog.v1"), ("sequence:age", "feedback.v1")]
    again = Description.of(described(spec))
    assert lineages_of_artifact(again) == lineages(spec)
    assert again.feature_tables == {"latest__age": 4, "prices": 4} and again.sequences == ("latest",)


def test_every_column_of_the_network_has_one_feature_and_one_source_at_least() -> None:
    made = [name for one in lineages(SPEC) for name in one.makes]
    columns = {f"user.{name}" for name in SPEC.user_columns} | {f"item.{name}" for name in SPEC.item_columns}
    assert set(made) == columns and len(made) == len(columns)
    assert all(one.sources for one in lineages(SPEC))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("price", {"price"}),
        ("item.mean", {"item.mean"}),
        ("mean", {"user.mean", "item.mean"}),
        ("context:hour", {"hour", "night_price"}),
        ("profiles.v1", {"city", "city_tag", "hidden"}),
    ],
)
def test_a_name_is_a_feature_a_column_a_source_or_a_topic(name: str, found: set[str]) -> None:
    assert {one.name for one in find(lineages(SPEC), name)} == found


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidInput, match=r"'prize' is no feature, column or source; there are .*item:price.*night_price"):
        find(lineages(SPEC), "prize")


def test_an_artifact_tells_the_lineage_of_the_spec_that_it_was_made_under() -> None:
    assert lineages_of_artifact(Description.of(described(SPEC))) == lineages(SPEC)
    first = FeatureSpec.load(SPEC_FILE)
    assert lineages_of_artifact(Description.of(described(first))) == lineages(first)
    assert [source.reference for source in sources_of(lineages(first))] == ["feedback:kind", "feedback:value", "item:categories"]


def test_an_artifact_of_features_that_are_not_known_here_is_refused() -> None:
    description = Description.of(described(SPEC))
    description.parts["features"] = [{"graph_feature": {"feature_name": "g"}}]
    with pytest.raises(CorruptArtifact, match="its features cannot be understood"):
        lineages_of_artifact(description)
