"""What is searched: read, tried against the spec's rules, or refused by file, key and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from services.common.platform.errors import ConfigurationError
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.search.documents import ABSENT, value_at, with_values
from services.trainer.search.space import Space, load_space
from tests.learning import KEYED, SPEC

pytestmark = pytest.mark.ml

SHIPPED: dict[str, Any] = yaml.safe_load(Path("model_repo/ranker/feature_spec.yaml").read_text())
KEYED_DOCUMENT = SHIPPED | {"format": 2, "features": KEYED}


def space_of(folder: Path, text: str, document: dict[str, Any] = SHIPPED) -> Space:
    path = folder / "space.yaml"
    path.write_text(text)
    return load_space(path, document, FeatureSpec.parse(document))


def test_values_stand_where_their_keys_say() -> None:
    document = {"network": "mmoe", "features": [{"id_feature": {"feature_name": "city", "embedding_dim": 8}}]}
    changed = with_values(document, {"network.hidden": [8], "features.city.embedding_dim": 4, "learning.dense_rate": 0.1, "network": "ple"})
    assert changed == {
        "network": {"name": "ple", "hidden": [8]},
        "features": [{"id_feature": {"feature_name": "city", "embedding_dim": 4}}],
        "learning": {"dense_rate": 0.1},
    }
    assert document["network"] == "mmoe" and value_at(document, "features.city.embedding_dim") == 8
    assert value_at(document, "features.town.embedding_dim") is ABSENT
    with pytest.raises(KeyError):
        with_values(document, {"features.town.embedding_dim": 4})


def test_a_key_of_a_network_counts_where_the_network_has_it(tmp_path: Path) -> None:
    space = space_of(tmp_path, "network.experts: {int: [2, 8]}\nnetwork: {choice: [dcn_din, {name: mmoe, hidden: [8]}]}\n")
    assert list(space.parameters) == ["network", "network.experts"], "the network is chosen first"
    assert not space.applies("network.experts", {"network": "dcn_din"})
    assert space.applies("network.experts", {"network": {"name": "mmoe"}})
    spec = space.spec({"network": {"name": "mmoe", "hidden": [8]}, "network.experts": 3})
    assert spec.network.model_dump() | {} == {"name": "mmoe", "experts": 3, "hidden": (8,), "tower": (16,), "attention_dim": 16}
    assert space.start_values() == {"network": "dcn_din"}


def test_the_network_that_the_spec_has_keeps_its_sizes(tmp_path: Path) -> None:
    document = SHIPPED | {"network": {"name": "dcn_din", "cross_layers": 3}}
    space = space_of(tmp_path, "network: {choice: [dcn_din, deepfm]}", document)
    assert space.spec({"network": "dcn_din"}) == space.start
    assert space.spec({"network": "deepfm"}).network.model_dump()["name"] == "deepfm"


def test_keys_that_must_agree_get_one_value(tmp_path: Path) -> None:
    space = space_of(tmp_path, "tables.user.dim: {int: [8, 24], step: 8, also: [tables.item.dim]}")
    spec = space.spec({"tables.user.dim": 24})
    assert (spec.tables.user.dim, spec.tables.item.dim) == (24, 24)
    assert space.start_values() == {"tables.user.dim": 16}
    assert space_of(tmp_path, "tables.user.dim: {choice: [8, 32], also: [tables.item.dim]}").start_values() is None


def test_the_default_space_is_one_that_any_spec_has() -> None:
    for document in (SHIPPED, KEYED_DOCUMENT, SHIPPED | {"network": {"name": "mmoe", "hidden": [24]}, "learning": {"dense_rate": 0.05}}):
        start = FeatureSpec.parse(document)
        space = load_space(None, document, start)
        values = space.start_values()
        assert values is not None
        assert space.spec(values).schema_hash == start.schema_hash
        assert ("learning.feature_rate" in values) == bool(start.features)
    assert SPEC.learning.given() == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tables.user.dim: {int: [8, 24]}", "user.dim and item.dim must be equal"),
        ("tables.user.dim: {int: [2, 24], also: [tables.item.dim]}", "value 2: feature spec"),
        ("tables.user.dims: {int: [8, 24]}", "key tables.user.dims: value 8"),
        ("negatives.keep_rate: {float: [0.1, 0.5]}", "key negatives.keep_rate: cannot be searched"),
        ("tasks: {choice: [1]}", "allowed are keys inside tables, history, counters, network, learning, features"),
        ("learning.dense_rate: {float: [0.1, 0.01]}", "the lowest must be below the highest"),
        ("learning.dense_rate: {float: [0, 0.01], log: true}", "with log the lowest must be above 0"),
        ("learning.dense_rate: {float: [0.001, 0.01], int: [1, 2]}", "exactly one of int"),
        ("learning.dense_rate: {float: [0.001, .nan]}", "key learning.dense_rate"),
        ("learning.dense_rate: {low: 1}", "key learning.dense_rate"),
        ("network: {choice: [dcn_din, dcnv2]}", "value 'dcnv2'"),
        ("network.experts: {int: [2, 8]}", "no network that is searched has it"),
        ("features.city.embedding_dim: {int: [4, 8]}", "the spec has no such feature; it has none"),
        ("{}", "key (top)"),
        ("- a", "key (top)"),
        ("a: {", "not YAML"),
    ],
)
def test_what_no_trial_could_learn_with_is_refused_by_file_key_and_value(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        space_of(tmp_path, text)
    assert said in str(refused.value) and "space.yaml" in str(refused.value)


def test_a_feature_may_be_another_size_but_read_no_other_column(tmp_path: Path) -> None:
    space = space_of(tmp_path, "features.tags.embedding_dim: {int: [4, 16], log: true}", KEYED_DOCUMENT)
    assert space.spec({"features.tags.embedding_dim": 7}).table_dims["tags"] == 7
    with pytest.raises(ConfigurationError, match="reads other columns"):
        space_of(tmp_path, "features.tags.expression: {choice: ['item:tags', 'item:words']}", KEYED_DOCUMENT)
    with pytest.raises(ConfigurationError, match="it has city, tags, both, hour, origin"):
        space_of(tmp_path, "features.town.embedding_dim: {int: [4, 16]}", KEYED_DOCUMENT)
