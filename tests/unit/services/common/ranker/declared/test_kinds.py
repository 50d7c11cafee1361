"""What each kind of feature computes, example by example: values that are there, absent, unknown and out of range."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from services.common.ranker.declared.entry_list import FeatureOne, feature_of
from services.common.ranker.declared.hashing import bucket_of, row_key
from services.common.ranker.declared.inputs import WrongValue
from services.common.ranker.declared.plan import Outputs, Plan
from services.common.ranker.features import past_of
from services.common.ranker.states import HistoryEntry

LARGEST = 65504.0
ADAPTER: TypeAdapter[Any] = TypeAdapter(FeatureOne)


def plan_of(*entries: dict[str, Any]) -> Plan:
    return Plan([feature_of(ADAPTER.validate_python(entry)) for entry in entries])


def one_each(plan: Plan, user: dict[str, Any], *items: dict[str, Any], context: dict[str, Any] | None = None) -> Outputs:
    """Run a request of one user."""
    rows = np.arange(len(items), dtype=np.int64)
    return plan.run(plan.events([user], [context or {}]), plan.items(items), np.zeros_like(rows), rows)


def columns(entry: dict[str, Any], *values: Any, **others: Any) -> dict[str, list[float]]:
    """Return the columns by name of a feature that reads `item:x`, over items that have these values; `...` stands for no attribute."""
    plan = plan_of(entry)
    items = [others if value is ... else {**others, "x": value} for value in values]
    return dict(zip(plan.item_columns, one_each(plan, {}, *items).items_BF.T.tolist(), strict=True))


def test_a_number_is_one_column_and_its_absence_another() -> None:
    found = columns({"raw_feature": {"feature_name": "price", "expression": "item:x"}}, 5, 2.5, True, ..., None, math.nan, 1e9, -1e300)
    assert found == {
        "price": [5, 2.5, 1, 0, 0, 0, LARGEST, -LARGEST],
        "price.absent": [0, 0, 0, 1, 1, 1, 0, 0],
    }


def test_a_default_value_replaces_what_is_absent_before_anything_else() -> None:
    entry = {"raw_feature": {"feature_name": "price", "expression": "item:x", "default_value": 100, "normalizer": "method=log10"}}
    assert columns(entry, 10, ..., 0) == {"price": [1, 2, -10]}


def test_clip_comes_before_the_normalizer() -> None:
    keys = {"feature_name": "age", "expression": "item:x", "clip": [0, 100], "normalizer": "method=zscore,mean=50,standard_deviation=25"}
    assert columns({"raw_feature": keys}, -3, 75, 1e6)["age"] == [-2, 1, 2]


def test_a_boundary_belongs_to_the_bucket_above() -> None:
    entry = {"raw_feature": {"feature_name": "age", "expression": "item:x", "boundaries": [18, 65]}}
    found = columns(entry, 17.9, 18, 64, 65, ...)
    assert list(found) == ["age.0", "age.1", "age.2", "age.absent"]
    assert list(map(list, zip(*found.values(), strict=True))) == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_a_vector_is_a_column_for_each_number_and_half_a_vector_is_none() -> None:
    entry = {"raw_feature": {"feature_name": "picture", "expression": "item:x", "raw_input_dim": 2}}
    assert columns(entry, [1, 2.5], (3, None), [], ...) == {
        "picture.0": [1, 0, 0, 0],
        "picture.1": [2.5, 0, 0, 0],
        "picture.absent": [0, 1, 1, 1],
    }


def test_a_word_of_a_short_list_is_a_column() -> None:
    entry = {"id_feature": {"feature_name": "city", "expression": "item:x", "vocab_list": ["Rome", "東京", 5]}}
    assert columns(entry, "Rome", " 東京 ", 5.0, "5.0", "Oslo", "", ..., ["Rome", "Rome", "Oslo"]) == {
        "city=Rome": [1, 0, 0, 0, 0, 0, 0, 2],
        "city=東京": [0, 1, 0, 0, 0, 0, 0, 0],
        "city=5": [0, 0, 1, 1, 0, 0, 0, 0],
        "city.unknown": [0, 0, 0, 0, 1, 0, 0, 1],
        "city.absent": [0, 0, 0, 0, 0, 1, 1, 0],
    }


def test_pooling_mean_gives_shares_and_a_default_takes_the_place_of_absence() -> None:
    keys = {"feature_name": "tags", "expression": "item:x", "num_buckets": 2, "pooling": "mean", "default_value": 1}
    assert columns({"id_feature": keys}, [0, 0, 1, 7], ..., -1, "01") == {
        "tags=0": [0.5, 0, 0, 0],
        "tags=1": [0.25, 1, 0, 0],
        "tags.unknown": [0.25, 0, 1, 1],
    }


def test_hashed_words_are_never_unknown() -> None:
    found = columns({"id_feature": {"feature_name": "tag", "expression": "item:x", "hash_bucket_size": 3}}, "Rome", ...)
    assert list(found) == ["tag.0", "tag.1", "tag.2", "tag.absent"]
    assert found[f"tag.{bucket_of('Rome', 3)}"] == [1, 0]
    assert found["tag.absent"] == [0, 1]


def test_words_with_a_table_are_keys_of_its_rows() -> None:
    known = {"embedding_dim": 8, "embedding_name": "places", "vocab_list": ["Rome"]}
    plan = plan_of(
        {"id_feature": {"feature_name": "home", "expression": "user:city", **known}},
        {"id_feature": {"feature_name": "shop", "expression": "item:city", **known}},
        {"id_feature": {"feature_name": "brand", "expression": "item:brand", "embedding_dim": 4}},
    )
    found = one_each(plan, {"city": "Rome"}, {"city": ["Oslo", "Rome"], "brand": "Rome"}, {})
    rome, unknown, absent = row_key("places", "word", "Rome"), row_key("places", "unknown"), row_key("places", "absent")
    assert found.event_keys["home"].keys_S.tolist() == [rome]
    assert found.pair_keys["shop"].keys_S.tolist() == [unknown, rome, absent]
    assert found.pair_keys["shop"].offsets.tolist() == [0, 2, 3]
    assert found.pair_keys["brand"].keys_S[0] == row_key("brand", "word", "Rome") != rome
    assert [one.name for one in (*plan.user_keyed, *plan.item_keyed)] == ["home", "shop", "brand"]
    assert plan.item_columns == plan.user_columns == ()


def test_a_combination_is_every_word_with_every_word_and_needs_all_parts() -> None:
    keys = {"feature_name": "both", "expression": ["user:city", "item:tags"], "embedding_dim": 8}
    plan = plan_of({"combo_feature": keys})
    found = one_each(plan, {"city": ["Rome", "Oslo"]}, {"tags": ["a", "b"]}, {}).pair_keys["both"]
    assert found.keys_S.tolist() == [
        *(row_key("both", "word", f"{city}\x1e{tag}") for city in ("Rome", "Oslo") for tag in ("a", "b")),
        row_key("both", "absent"),
    ]


def test_a_combination_of_long_lists_keeps_the_first_256_pairs() -> None:
    plan = plan_of({"combo_feature": {"feature_name": "c", "expression": ["user:a", "item:b"], "embedding_dim": 8}})
    many = [str(number) for number in range(100)]
    found = one_each(plan, {"a": many}, {"b": many}).pair_keys["c"]
    assert len(found.keys_S) == 256
    assert found.keys_S[100] == row_key("c", "word", "1\x1e0")


@pytest.mark.parametrize(("combiner", "expected"), [("sum", [3.5, 1, 0]), ("mean", [1.75, 1, 0]), ("min", [1.5, 1, 0]), ("max", [2, 1, 0])])
def test_a_map_is_looked_up_by_the_words_of_a_key(combiner: str, expected: list[float]) -> None:
    keys = {"feature_name": "taste", "map": "user:likes", "key": "item:tags", "combiner": combiner}
    plan = plan_of({"lookup_feature": keys})
    found = one_each(plan, {"likes": ["a:9", "a:1.5", "b:2", "c", "d:x"]}, {"tags": ["a", "b", "z"]}, {"tags": "c"}, {"tags": ["d"]})
    assert found.items_BF.tolist() == [[value, float(at == 2)] for at, value in enumerate(expected)]


def test_a_map_may_be_a_mapping() -> None:
    plan = plan_of({"lookup_feature": {"feature_name": "taste", "map": "user:likes", "key": "item:tag", "default_value": -1}})
    assert one_each(plan, {"likes": {"a": 1.5, 7: 2}}, {"tag": "a"}, {"tag": 7.0}, {}).items_BF.tolist() == [[1.5], [2], [-1]]


@pytest.mark.parametrize(("pkey", "skey", "expected"), [("item:c", "item:b", 0.5), ("item:c", "ALL", 0.75), ("ALL", "item:b", 1.5)])
def test_a_nested_map_is_matched_by_two_keys_or_one(pkey: str, skey: str, expected: float) -> None:
    keys = {"feature_name": "match", "nested_map": "user:nest", "pkey": pkey, "skey": skey, "default_value": 0}
    plan = plan_of({"match_feature": keys})
    found = one_each(plan, {"nest": ["shoes^nike:0.5,puma:0.25", "hats^nike:1"]}, {"c": "shoes", "b": "nike"}, {"c": "x", "b": "y"})
    assert found.items_BF.tolist() == [[expected], [0]]
    text = one_each(plan, {"nest": "shoes^nike:0.5,puma:0.25|hats^nike:1"}, {"c": "shoes", "b": "nike"}, {})
    assert text.items_BF.tolist() == [[expected], [0]]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("query_common_ratio", [0.5, 1, 0]),
        ("title_common_ratio", [1, 0.5, 0]),
        ("is_contain", [0, 1, 0]),
        ("is_equal", [0, 0, 0]),
    ],
)
def test_overlap_counts_different_words(method: str, expected: list[float]) -> None:
    keys = {"feature_name": "o", "query": "item:q", "title": "item:t", "method": method}
    plan = plan_of({"overlap_feature": keys})
    found = one_each(plan, {}, {"q": ["a", "b", "a"], "t": "a"}, {"q": ["a"], "t": ["a", "b"]}, {"q": "a"})
    assert found.items_BF[:, 0].tolist() == expected
    assert found.items_BF[:, 1].tolist() == [0, 0, 1]


def test_an_expression_reads_fields_and_features_of_every_side() -> None:
    plan = plan_of(
        {"expr_feature": {"feature_name": "value", "expression": "rate * (1 if vip else 0.5)", "variables": ["feature:rate", "user:vip"]}},
        {"expr_feature": {"feature_name": "rate", "expression": "price / budget", "variables": ["item:price", "context:budget"]}},
    )
    found = one_each(plan, {"vip": False}, {"price": 8}, {"price": 0}, {}, context={"budget": 2})
    assert plan.item_columns == ("value", "value.absent", "rate", "rate.absent")
    assert found.items_BF.tolist() == [[2, 0, 4, 0], [0, 0, 0, 0], [0, 1, 0, 1]]


def test_a_division_by_zero_is_out_of_range_and_zero_by_zero_is_absent() -> None:
    plan = plan_of({"expr_feature": {"feature_name": "r", "expression": "a / b", "variables": ["item:a", "item:b"]}})
    found = one_each(plan, {}, {"a": 1, "b": 0}, {"a": -1, "b": 0}, {"a": 0, "b": 0})
    assert found.items_BF.tolist() == [[LARGEST, 0], [-LARGEST, 0], [0, 1]]


def test_tokens_of_a_text_are_words() -> None:
    keys = {"feature_name": "t", "expression": "item:x", "vocab_list": ["foot", "ball", "東", "京", "42"]}
    found = columns({"tokenize_feature": keys}, "Foot-BALL 42", "東京 ＦＯＯＴ", "…", ...)
    assert found == {
        "t=foot": [1, 1, 0, 0],
        "t=ball": [1, 0, 0, 0],
        "t=東": [0, 1, 0, 0],
        "t=京": [0, 1, 0, 0],
        "t=42": [1, 0, 0, 0],
        "t.unknown": [0, 0, 0, 0],
        "t.absent": [0, 0, 1, 1],
    }


def test_a_bucket_is_a_word_for_features_that_read_words() -> None:
    plan = plan_of(
        {"raw_feature": {"feature_name": "age", "expression": "user:age", "boundaries": [18, 65], "stub_type": True}},
        {"raw_feature": {"feature_name": "size", "expression": "item:size", "stub_type": True}},
        {"combo_feature": {"feature_name": "both", "expression": ["feature:age", "feature:size"], "vocab_list": ["1\x1e42"][:0] or ["x"]}},
        {"lookup_feature": {"feature_name": "by_age", "map": "item:by_age", "key": "feature:age"}},
    )
    found = one_each(plan, {"age": 30}, {"size": 42, "by_age": ["0:7", "1:9"]})
    assert plan.item_columns == ("both=x", "both.unknown", "both.absent", "by_age", "by_age.absent")
    assert found.items_BF.tolist() == [[0, 1, 0, 9, 0]]


def test_a_sequence_holds_the_newest_events_and_each_part_of_them_and_of_candidates_what_can_be_compared() -> None:
    parts = [
        {"id_feature": {"feature_name": "category", "expression": "item:tags", "embedding_dim": 8}},
        {"raw_feature": {"feature_name": "age", "expression": "sequence:age", "boundaries": [60], "embedding_dim": 4}},
        {"id_feature": {"feature_name": "item", "expression": "sequence:item_id", "embedding_dim": 4, "embedding_name": "ids"}},
        {"id_feature": {"feature_name": "size", "expression": "feature:big", "embedding_dim": 4}},
    ]
    big = {"raw_feature": {"feature_name": "big", "expression": "item:size", "boundaries": [10], "stub_type": True}}
    plan = plan_of(big, {"sequence_feature": {"sequence_name": "latest", "sequence_length": 2, "features": parts}})
    items = plan.items([{}, {"tags": ["a", "b"], "size": 30}, {"tags": "c", "size": 3}, {"tags": "d"}])
    history = [HistoryEntry("x", 1.0, 940_001), HistoryEntry("y", 0.5, 940_000), HistoryEntry("z", 0.0, 1)]
    past = past_of(history, 1_000_000, items, np.asarray([1, 2, 3]))
    (found,) = plan.sequence_keys(past, ["y", "new"], items, np.asarray([2, 0]))
    words = {table: lambda *words, table=table: [row_key(table, "word", word) for word in words] for table in ("latest__category", "ids")}
    age, size = ((lambda word, table=f"latest__{name}": row_key(table, *word)) for name in ("age", "size"))
    assert found.lengths_G.tolist() == [2]
    assert found.events.counts_NK.tolist() == [[2, 1, 1, 1], [1, 1, 1, 1]]
    assert found.events.keys_S.view(np.uint64).tolist() == [
        *(*words["latest__category"]("a", "b"), age(("bucket", "0")), *words["ids"]("x"), size(("word", "1"))),
        *(*words["latest__category"]("c"), age(("bucket", "1")), *words["ids"]("y"), size(("word", "0"))),
    ]
    assert found.candidates.counts_NK.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert found.candidates.keys_S.view(np.uint64).tolist() == [
        *(*words["latest__category"]("c"), *words["ids"]("y"), size(("word", "0"))),
        *(row_key("latest__category", "absent"), *words["ids"]("new"), size(("absent",))),
    ]
    (sequence,) = plan.sequences
    assert (sequence.width, sequence.query_width) == (20, 16)
    assert sequence.query_places == (*range(8), *range(12, 20))
    assert sequence.columns[:2] == ("latest[0]", "latest[1]") and sequence.columns[20:29][-1] == "latest[12]*"


def test_an_event_of_which_the_time_is_not_known_has_no_age_and_a_clock_that_is_behind_makes_none_of_the_future() -> None:
    age = {"raw_feature": {"feature_name": "age", "expression": "sequence:age", "boundaries": [60], "embedding_dim": 4}}
    plan = plan_of({"sequence_feature": {"sequence_name": "latest", "features": [age]}})
    items = plan.items([{}])
    past = past_of([HistoryEntry("x", 1.0, 9_000), HistoryEntry("y", 0.5)], 1_000, items, np.zeros(2, np.int64))
    (found,) = plan.sequence_keys(past, ["y"], items, np.zeros(1, np.int64))
    assert past.ages_P[0] == 0 and np.isnan(past.ages_P[1])
    assert found.events.keys_S.view(np.uint64).tolist() == [row_key("latest__age", "bucket", "0"), row_key("latest__age", "absent")]
    assert plan.reads_ages and not plan_of().reads_ages


@pytest.mark.parametrize(
    ("keys", "value", "what"),
    [
        ({"raw_feature": {"expression": "item:x"}}, "5", "item:x: '5' is no number"),
        ({"raw_feature": {"expression": "item:x"}}, [1, 2], r"item:x: \[1, 2\] is no number"),
        ({"raw_feature": {"expression": "item:x", "value_dim": 3}}, [1, 2], "item:x: a list of 2 is no list of 3 numbers"),
        ({"raw_feature": {"expression": "item:x", "value_dim": 3}}, 7, "item:x: 7 is no list of 3 numbers"),
        ({"raw_feature": {"expression": "item:x"}}, 1 << 64, "item:x: an integer of 65 bits, at most 64 are allowed"),
        ({"id_feature": {"expression": "item:x", "num_buckets": 3}}, 10**400, "item:x: an integer of 1329 bits"),
        ({"id_feature": {"expression": "item:x", "num_buckets": 3}}, [["a"]], r"item:x: \['a'\] is no text, number, truth or list"),
        ({"id_feature": {"expression": "item:x", "num_buckets": 3}}, b"a", "item:x: b'a' is no text"),
        ({"id_feature": {"expression": "item:x", "num_buckets": 3}}, ["a"] * 50_000, "item:x: 50000 values, at most 4096 are allowed"),
        ({"id_feature": {"expression": "item:x", "num_buckets": 3}}, "a" * 200_000, "item:x: a text of 200000 characters"),
    ],
)
def test_a_value_of_another_type_is_refused_by_the_name_of_its_field(keys: dict[str, Any], value: Any, what: str) -> None:
    ((kind, inner),) = keys.items()
    with pytest.raises(WrongValue, match=what):
        columns({kind: {"feature_name": "f", **inner}}, value)
