"""The words behind the keys of a request: what the spec lists, what the request brought, and the key itself for all else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from services.common.ranker.declared.hashing import bucket_of, row_key
from services.common.ranker.declared.row_names import ABSENT, UNKNOWN, RowNames, row_names
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Declared, past_of
from services.common.ranker.states import HistoryEntry
from tests.learning import SPEC

NOW_MS = 1_700_000_000_000
FEATURES: list[dict[str, Any]] = [
    {"id_feature": {"feature_name": "city", "expression": "user:city", "vocab_list": ["Rome", "Oslo"], "embedding_dim": 4}},
    {"tokenize_feature": {"feature_name": "query", "expression": "context:query", "embedding_dim": 4, "embedding_name": "words"}},
    {"tokenize_feature": {"feature_name": "title", "expression": "item:title", "embedding_dim": 4, "embedding_name": "words"}},
    {"id_feature": {"feature_name": "shelf", "expression": "item:shelf", "num_buckets": 5, "embedding_dim": 4}},
    {"id_feature": {"feature_name": "maker", "expression": "item:maker", "hash_bucket_size": 7, "embedding_dim": 4}},
    {"raw_feature": {"feature_name": "price", "expression": "item:price", "boundaries": [10, 99.5], "embedding_dim": 4}},
    {"raw_feature": {"feature_name": "weight", "expression": "item:weight"}},
    {
        "sequence_feature": {
            "sequence_name": "latest",
            "sequence_length": 5,
            "features": [
                {"id_feature": {"feature_name": "item", "expression": "sequence:item_id", "embedding_dim": 4}},
                {"raw_feature": {"feature_name": "age", "expression": "sequence:age", "boundaries": [60], "embedding_dim": 4}},
                {"id_feature": {"feature_name": "shelf", "expression": "item:shelf", "num_buckets": 5, "embedding_dim": 4}},
            ],
        }
    },
]
ITEMS: list[dict[str, Any]] = [
    {"title": "red shoes", "shelf": 3, "maker": "Acme", "price": 12.0},
    {"title": "Blue Hat", "shelf": 9, "price": 99.5},
    {},
]


def spec_of(features: list[dict[str, Any]]) -> FeatureSpec:
    return FeatureSpec.parse(SPEC.model_dump(mode="json") | {"format": 2, "features": features})


def names_of(profile: dict[str, Any], context: dict[str, Any], *, known: bool = True) -> RowNames:
    """Compute the keys as the recommender does, and name them; `known`: the request brought what they were computed of."""
    plan = spec_of(FEATURES).plan
    items, item_ids = plan.items(ITEMS), ["a", "b", "c"]
    history = [HistoryEntry("b", 0.5, NOW_MS - 30_000), HistoryEntry("zz", 0.5, NOW_MS - 90_000)]
    past = past_of(history, NOW_MS, items, np.array([1, 2]))
    keys = Declared.of(plan, profile, context, items, past, item_ids).keys
    assert keys is not None
    brought = {"profile": profile, "context": context} if known else {"profile": {}, "context": {}}
    return row_names(plan, keys, item_ids=item_ids, **brought)


def test_listed_words_and_those_that_the_request_brought_have_their_names() -> None:
    found = names_of({"city": "Oslo"}, {"query": "blue hat"})
    assert found.user == {"city": ["Oslo"], "query": ["blue", "hat"]}
    assert [item["shelf"] for item in found.items] == [["3"], [UNKNOWN], [ABSENT]]
    assert [item["maker"] for item in found.items] == [[f"bucket {bucket_of('Acme', 7)}"], [ABSENT], [ABSENT]]
    assert [item["price"] for item in found.items] == [["10 to 99.5"], ["from 99.5"], [ABSENT]]
    # The item's own words are not in the exposure; those that the request shares with it are.
    assert found.items[1]["title"] == ["blue", "hat"]
    assert found.items[0]["title"] == [f"#{row_key('words', 'word', word):016x}" for word in ("red", "shoes")]
    assert set(found.items[0]) == {"title", "shelf", "maker", "price"}, "weight is a column"


def test_events_of_sequences_are_named_part_by_part_newest_first() -> None:
    events = names_of({}, {}).sequences["latest"]
    strange = f"#{row_key('latest__item', 'word', 'zz'):016x}"
    assert events == [
        {"item": ["b"], "age": ["below 60"], "shelf": [UNKNOWN]},
        {"item": [strange], "age": ["from 60"], "shelf": [ABSENT]},
    ]


def test_what_the_request_did_not_bring_is_shown_by_its_key() -> None:
    found = names_of({"city": "Lima"}, {"query": "blue"}, known=False)
    assert found.user == {"city": [UNKNOWN], "query": [f"#{row_key('words', 'word', 'blue'):016x}"]}
    assert names_of({}, {}).user == {"city": [ABSENT], "query": [ABSENT]}


@pytest.mark.parametrize("size", [100_000, 2_000_000_000])
def test_a_list_too_long_to_be_hashed_whole_is_no_obstacle(size: int) -> None:
    feature = {"id_feature": {"feature_name": "shop", "expression": "context:shop", "num_buckets": size, "embedding_dim": 4}}
    plan = spec_of([feature]).plan
    keys = Declared.of(plan, {}, {"shop": 12}, plan.items([{}])).keys
    assert keys is not None
    found = row_names(plan, keys, profile={}, context={"shop": 12}, item_ids=["a"])
    assert (found.user, found.items, found.sequences) == ({"shop": ["12"]}, [{}], {})


def test_a_value_that_the_features_cannot_read_leaves_the_keys_as_they_are() -> None:
    """An exposure of another time: the spec reads numbers now where the request brought a text."""
    feature = {"raw_feature": {"feature_name": "size", "expression": "context:size", "boundaries": [1], "embedding_dim": 4}}
    plan = spec_of([feature]).plan
    keys = Declared.of(plan, {}, {"size": 2.0}, plan.items([{}])).keys
    assert keys is not None
    assert row_names(plan, keys, profile={}, context={"size": "large"}, item_ids=[]).user == {"size": ["from 1"]}
