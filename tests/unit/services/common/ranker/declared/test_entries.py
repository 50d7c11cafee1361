"""The list `features` of a spec of format 2: what is refused, with file, key, what is there and what is allowed; what the hash sees."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.common.platform.errors import ConfigurationError
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.spec_description import Description, described
from tests.fuzz.declared_specs import fuzz_attributes, fuzz_specs

SHIPPED: dict[str, Any] = yaml.safe_load(Path("model_repo/ranker/feature_spec.yaml").read_text())


def spec_of(*features: Any, **changes: Any) -> FeatureSpec:
    return FeatureSpec.parse(copy.deepcopy(SHIPPED) | {"format": 2, "features": list(features)} | changes, source="team.yaml")


def id_of(name: str = "city", **keys: Any) -> dict[str, Any]:
    return {"id_feature": {"feature_name": name, "expression": "user:city", "vocab_list": ["Rome"], **keys}}


def raw_of(name: str = "price", **keys: Any) -> dict[str, Any]:
    return {"raw_feature": {"feature_name": name, "expression": "item:price", **keys}}


def part(name: str, expression: str = "item:tags", **keys: Any) -> dict[str, Any]:
    return {"id_feature": {"feature_name": name, "expression": expression, "embedding_dim": 8, **keys}}


def sequence_of(*parts: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"sequence_feature": {"sequence_name": "s", "features": list(parts), **keys}}


def expr_of(name: str, *variables: str, expression: str = "a") -> dict[str, Any]:
    return {"expr_feature": {"feature_name": name, "expression": expression, "variables": list(variables)}}


def test_declared_columns_follow_the_counters_by_side() -> None:
    spec = spec_of(id_of(), raw_of(), raw_of("hour", expression="context:hour", default_value=0))
    plain = FeatureSpec.parse(SHIPPED)
    assert spec.user_columns == (*plain.user_columns, "city=Rome", "city.unknown", "city.absent", "hour")
    assert spec.item_columns == (*plain.item_columns, "price", "price.absent")


def test_features_with_a_table_make_inputs_of_the_network_and_no_column_of_the_block() -> None:
    spec, plain = spec_of(id_of(embedding_dim=4), raw_of(boundaries=[1, 2], embedding_dim=5, embedding_name="prices")), spec_of()
    assert (spec.user_columns, spec.item_columns) == (plain.user_columns, plain.item_columns)
    assert spec.user_inputs == (*plain.user_columns, *(f"city[{at}]" for at in range(4)))
    assert spec.item_inputs == (*plain.item_columns, *(f"price[{at}]" for at in range(5)))
    assert spec.table_dims == {"user": 16, "item": 16, "city": 4, "prices": 5}


def test_what_features_say_of_their_table_is_what_the_spec_says_of_others() -> None:
    limits = {"filter_freq": 3, "max_element_size": 1000, "steps_to_live": 9, "l2_weight_threshold": 0.5, "max_rows": 77}
    table = spec_of(id_of(embedding_dim=8, **limits)).all_tables["city"]
    assert (table.admission.min_count, table.admission.max_element_size) == (3, 1000)
    assert (table.eviction.steps_to_live, table.eviction.l2_weight_threshold, table.eviction.max_rows) == (9, 0.5, 77)


def test_the_hash_sees_features_with_tables_by_name_and_table_and_not_by_the_limits_of_the_table() -> None:
    one = spec_of(id_of(embedding_dim=8))
    assert one.schema_hash == spec_of(id_of(embedding_dim=8, max_rows=5, filter_freq=2)).schema_hash
    others = [id_of("town", embedding_dim=8), id_of(embedding_dim=8, embedding_name="places"), id_of(embedding_dim=4), id_of()]
    assert len({one.schema_hash, *(spec_of(other).schema_hash for other in others)}) == 5
    assert Description.of(described(one)).feature_tables == {"city": 8}


def test_specs_without_such_features_have_the_hashes_that_they_had() -> None:
    """Recorded before features could have tables: a changed hash would refuse every artifact that is out there."""
    numbers = spec_of(id_of(), raw_of(), raw_of("hour", expression="context:hour", default_value=0))
    assert (FeatureSpec.parse(SHIPPED).schema_hash, numbers.schema_hash) == ("8537633868ea1a2e", "6b32e98de53b58ed")


@pytest.mark.parametrize(
    ("features", "says"),
    [
        (["city"], r"key features.0: an entry is a mapping of one key, its kind \(there: 'city'\); kinds are id_feature, raw_feature"),
        ([{"id_featur": {}}], r"key features.0: an entry is a mapping of one key, its kind \(there: id_featur\); kinds are"),
        ([{"id_feature": {}, "raw_feature": {}}], r"key features.0: an entry is .*there: id_feature, raw_feature"),
        ([id_of(vocablist=["a"])], "key features.0.id_feature: unknown key 'vocablist'; id_feature has feature_name, .*vocab_list"),
        ([{"id_feature": {"feature_name": "city", "hash_bucket_size": 4}}], "key features.0.id_feature.expression: Field required"),
        (
            [raw_of(), id_of(expression="city")],
            "key features.1.id_feature.expression: 'city' is no side:field; sides are user, item, context",
        ),
        ([id_of(expression="const:1")], "key features.0.id_feature.expression: 'const:1' is no side:field"),
        ([id_of(expression="user: city")], "key features.0.id_feature.expression: 'user: city' is no side:field"),
        ([id_of(expression="user:" + "x" * 129)], "is no side:field; .* a field is 1 to 128 printable bytes"),
        ([id_of(name="City")], "key features.0.id_feature.feature_name: .*pattern.*there: 'City'"),
        ([id_of(vocab_list=["a", "a"])], "key features.0.id_feature: .*vocab_list: a word is there twice"),
        ([id_of(vocab_list=[1, "1.0"])], "key features.0.id_feature: .*vocab_list: a word is there twice"),
        ([id_of(vocab_list=[[]])], "key features.0.id_feature.vocab_list.0: .* is no text"),
        ([id_of(vocab_list=["a\nb"])], "key features.0.id_feature.vocab_list.0: .* is no word: 1 to 100 printable characters"),
        (
            [id_of(vocab_list=list(range(65)))],
            r"give vocab_list, num_buckets or hash_bucket_size of at most 64 \(there: 65\), or embedding_dim",
        ),
        ([id_of(num_buckets=3)], "num_buckets and vocab_list: only one of them"),
        ([id_of(vocab_list=None)], "without embedding_dim every value is a column: give vocab_list, num_buckets or hash_bucket_size"),
        ([id_of(filter_freq=3)], "filter_freq is about an embedding table: give embedding_dim too, or leave filter_freq out"),
        (
            [sequence_of(raw_of(expression="sequence:age"))],
            "key features.0.sequence_feature: .*'price' has no embedding_dim: an event is the rows",
        ),
        (
            [sequence_of(part("x", "sequence:price"))],
            "'x': 'sequence:price' is nothing of an event: allowed are item:FIELD, feature:NAME of a feature of the item, sequence:item_id",
        ),
        ([sequence_of(part("x", "user:city"))], "'x': 'user:city' is nothing of an event"),
        ([sequence_of(part("x", "sequence:age"))], "'x': sequence:age is a number; make it a raw_feature with boundaries"),
        (
            [sequence_of(raw_of(expression="sequence:item_id", boundaries=[1], embedding_dim=4))],
            "'price': sequence:item_id is words; make it an id_feature",
        ),
        ([sequence_of(part("x", "item:like"))], r"features.0.sequence_feature \(s\): 'item:like' is a label"),
        ([sequence_of(part("x", "feature:none"))], r"features.0.sequence_feature \(s\): 'feature:none': there is no such feature"),
        (
            [id_of(), sequence_of(part("x", "feature:city"))],
            "features: s__x: 'feature:city' is not about the item alone; an event has no other",
        ),
        ([sequence_of(part("x"), part("x"))], "'x' is there twice"),
        ([sequence_of(part("x", stub_type=True))], "'x': stub_type: no other feature reads a part of a sequence"),
        ([sequence_of(part("x"), stub_type=True)], "stub_type: no other feature reads a sequence"),
        ([sequence_of(part("x"), feature_name="t")], "sequence_name and feature_name are two names of one key; give one"),
        ([sequence_of(part("x"), sequence_name="S")], "key features.0.sequence_feature.sequence_name: .*pattern.*there: 'S'"),
        ([{"sequence_feature": {"features": [part("x")]}}], "key features.0.sequence_feature.sequence_name: Field required"),
        ([sequence_of(part("x"), sequence_pk="user:clicks")], "unknown key 'sequence_pk'; sequence_feature has sequence_name, "),
        ([sequence_of(part("x"), sequence_length=1_000)], "key features.0.sequence_feature.sequence_length: .*100.*there: 1000"),
        ([sequence_of(part("x"), sequence_length=101)], "key features.0.sequence_feature.sequence_length: .*100.*there: 101"),
        (
            [sequence_of(part("x"), sequence_length=21)],
            "features: 's' has sequence_length 21, and history.length is 20: a user's state holds no more events; lower the one or raise",
        ),
        ([sequence_of()], "key features.0.sequence_feature.features: "),
        ([sequence_of(*(part(f"x{at}") for at in range(17)))], "key features.0.sequence_feature.features: .*at most 16"),
        ([sequence_of(part("x"), sequence_name=f"s{at}") for at in range(9)], "features: 9 sequences; at most 8 are allowed"),
        (
            [sequence_of(*(part(f"x{at}", embedding_dim=256) for at in range(5)))],
            "embedding_dim of all item features is 2560 together; at most 2048 go into a network .a part of a sequence counts twice",
        ),
        (
            [sequence_of(part("x", embedding_name="t")), id_of(embedding_dim=4, embedding_name="t")],
            "city says embedding_dim 4 and x 8, but both share the table 't'",
        ),
        ([sequence_of(part("x")), id_of("s__x", embedding_dim=8)], "a part is called 's__x', and so is another feature"),
        ([sequence_of(part("x")), sequence_of(part("x"))], "features.1.sequence_feature.sequence_name: 's' is there twice"),
        (
            [sequence_of(part("x")), raw_of(expression="feature:s")],
            r"features.1.raw_feature \(price\): 'feature:s': a sequence cannot be read by another feature",
        ),
        (
            [id_of(embedding_dim=8, embedding_name="user")],
            "features: the table 'user' holds the users' own rows; give the feature another embedding_name",
        ),
        (
            [id_of(embedding_dim=8, filter_freq=256, max_element_size=1000)],
            "features: table 'city': a Bloom filter counts to 255: lower filter_freq 256",
        ),
        ([id_of(f"f{at}", embedding_dim=4) for at in range(256)], "features: 256 user features with embedding_dim; .* holds 255 a side"),
        ([id_of(f"f{at}", embedding_dim=256) for at in range(9)], "embedding_dim of all user features is 2304 together; at most 2048"),
        ([raw_of(boundaries=[1, 1])], "key features.0.raw_feature: .*boundaries must rise"),
        ([raw_of(boundaries=[".nan"])], "key features.0.raw_feature.boundaries.0"),
        ([raw_of(boundaries=list(range(64)))], "boundaries: they make 65 columns, at most 64 are allowed"),
        ([raw_of(embedding_dim=8)], "embedding_dim of a number needs boundaries"),
        ([raw_of(clip=[1, 0])], "clip must be"),
        ([raw_of(default_value=float("nan"))], "key features.0.raw_feature.default_value"),
        ([raw_of(value_dim=2, raw_input_dim=3)], "value_dim 2 and raw_input_dim 3 are two names of one number"),
        ([raw_of(value_dim=2, boundaries=[1])], "boundaries are for one number, not for a vector"),
        ([raw_of(normalizer="log10")], "key features.0.raw_feature.normalizer: 'log10' names no method; write method=log10, zscore"),
        ([raw_of(normalizer="method=zscore,mean=1")], "normalizer: method=zscore needs a finite standard_deviation"),
        ([raw_of(normalizer="method=minmax,min=1,max=1")], "normalizer: .*max must be above min"),
        ([raw_of(normalizer="method=log10,base=2")], "normalizer: 'base' is no argument of log10; it has threshold, default"),
        ([raw_of(normalizer="method=expression,expr=y")], "normalizer: 'y' is no variable of it; variables are x"),
        ([expr_of("e", "item:a", expression="a +")], "key features.0.expr_feature: .*expression: 'a \\+' is no expression"),
        ([expr_of("e", "item:a", expression="a > 1 ? 1 : 0")], "write `a if c else b` in place of"),
        ([expr_of("e", "item:a", "user:a")], "variables: two of them have the same name behind their side"),
        ([expr_of("e", "item:the price")], "variables: 'the price' cannot stand in an expression"),
        (
            [expr_of("e", "item:a", expression="__import__('os')")],
            "function '__import__' is not allowed; allowed are numbers, the variables",
        ),
        ([id_of(), id_of()], "features.1.id_feature.feature_name: 'city' is there twice"),
        ([raw_of("mean")], "features: the item column 'mean' is there already, of the counters"),
        (
            [raw_of(expression="feature:cost")],
            r"features.0.raw_feature \(price\): 'feature:cost': there is no such feature; there are price",
        ),
        ([id_of(), raw_of(expression="feature:city")], r"'feature:city' is words \(id_feature\), and raw_feature reads numbers"),
        (
            [raw_of(), id_of("v", expression="feature:vec"), raw_of("vec", value_dim=3)],
            "'feature:vec' is a vector, and id_feature reads words",
        ),
        ([raw_of("v", value_dim=3), raw_of("w", expression="feature:v")], "'feature:v' has 3 numbers, here 1 are wanted"),
        (
            [expr_of("a", "feature:b", expression="b"), expr_of("b", "feature:a")],
            "features: they read each other in a circle: [ab] reads [ab]",
        ),
        ([raw_of(expression="feature:price")], "features: they read each other in a circle: price reads price"),
        ([raw_of(expression="context:value")], "'context:value' is a label: what people did is not known when items are ranked"),
        ([raw_of(expression="user:like")], "'user:like' is a label"),
        ([raw_of(expression="item:rating")], "'item:rating' is a label"),
        ([raw_of(expression="sequence:age")], "only parts of a sequence_feature read these"),
        (
            [{"match_feature": {"feature_name": "m", "nested_map": "user:n", "pkey": "ALL", "skey": "ALL"}}],
            "key features.0.match_feature: .*pkey and skey: one of them names a field",
        ),
        (
            [{"sequence_feature": {"feature_name": "s", "features": [id_of(vocab_lst=[1])]}}],
            "key features.0.sequence_feature.features.0.id_feature: unknown key 'vocab_lst'",
        ),
        (
            [
                {"id_feature": {"feature_name": "a", "expression": "user:a", "embedding_dim": 8, "embedding_name": "t"}},
                {"id_feature": {"feature_name": "b", "expression": "user:b", "embedding_dim": 4, "embedding_name": "t"}},
            ],
            "features: b says embedding_dim 4 and a 8, but both share the table 't'; say the same in both",
        ),
        (
            [raw_of(value_dim=128), raw_of("b", value_dim=128)],
            "counters and features: they make 2.. item columns; an exposure block holds 255",
        ),
        ([raw_of(f"f{at}") for at in range(1001)], "key features: .*at most 1000 items"),
    ],
)
def test_a_mistake_is_refused_in_one_line_that_names_file_and_key(features: list[Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        spec_of(*features)
    assert str(caught.value).startswith("feature spec team.yaml: key ")
    assert "\n" not in str(caught.value)


def test_format_1_has_no_features() -> None:
    with pytest.raises(ConfigurationError, match="features: these are of format 2; write format: 2"):
        FeatureSpec.parse(SHIPPED | {"features": [raw_of()]})


def test_the_hash_sees_what_a_feature_means_and_not_how_its_entry_is_spelled() -> None:
    base = spec_of(id_of(), raw_of())
    assert base.schema_hash != FeatureSpec.parse(SHIPPED).schema_hash
    assert spec_of(id_of(pooling="sum", vocab_list=[" Rome "]), raw_of(value_dim=1)).schema_hash == base.schema_hash
    for other in (
        spec_of(raw_of(), id_of()),
        spec_of(id_of(), raw_of(default_value=0)),
        spec_of(id_of(), raw_of(clip=[0, 9])),
        spec_of(id_of(expression="user:town"), raw_of()),
    ):
        assert other.schema_hash != base.schema_hash


def test_a_spec_that_is_dumped_and_read_again_is_the_same() -> None:
    spec = spec_of(id_of(), raw_of(normalizer="method=log10"), expr_of("e", "feature:price", expression="price * 2"))
    again = FeatureSpec.parse(spec.model_dump(mode="json"))
    assert again.schema_hash == spec.schema_hash
    assert again.item_columns == spec.item_columns


def test_a_sequence_is_dumped_and_read_again_and_its_tables_limits_are_not_in_the_hash() -> None:
    spec = spec_of(sequence_of(part("x", filter_freq=2, max_rows=9), sequence_length=7))
    again = FeatureSpec.parse(spec.model_dump(mode="json"))
    assert again.schema_hash == spec.schema_hash == spec_of(sequence_of(part("x"), sequence_length=7)).schema_hash
    assert again.item_inputs == spec.item_inputs and spec.item_inputs[-1] == "s[7]*"
    assert (spec.user_columns, spec.item_columns) == (spec_of().user_columns, spec_of().item_columns)
    assert spec.all_tables["s__x"].admission.min_count == 2 and spec.all_tables["s__x"].eviction.max_rows == 9
    for other in (sequence_of(part("x"), sequence_length=8), sequence_of(part("x", pooling="mean"), sequence_length=7)):
        assert spec_of(other).schema_hash != spec.schema_hash


def test_features_may_come_and_go_but_not_change() -> None:
    before = Description.of(described(spec_of(id_of(), raw_of())))
    free = ("counters", "format", "history", "kinds")
    assert before.differences(spec_of(id_of(), raw_of("weight")), free=free) == []
    assert before.differences(FeatureSpec.parse(SHIPPED), free=free) == []
    assert Description.of(described(FeatureSpec.parse(SHIPPED))).differences(spec_of(raw_of()), free=free) == []
    (found,) = before.differences(spec_of(id_of(), raw_of(clip=[0, 1])), free=free)
    assert found.startswith('features.price was {"raw_feature": ') and found.endswith("(give it another name)")


def test_damaged_lists_and_attributes_are_refused_by_name() -> None:
    assert fuzz_specs(500, seed=1)["refused"] > 100
    assert fuzz_attributes(300, seed=2)["unfit"] > 20
