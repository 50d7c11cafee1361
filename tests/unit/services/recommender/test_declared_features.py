"""Declared features in a request: scored and logged as a batch computes them; what has another type is refused, or said."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from services.common.events.catalog import CatalogItem
from services.common.ranker import exposure_block
from services.common.ranker.declared.hashing import row_key
from services.common.ranker.declared.plan import Plan
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Declared
from services.common.ranker.states import Interaction, UserState
from services.recommender.core import InvalidQuery, Query
from services.recommender.item_attributes import ItemAttributes
from services.trainer.attribute_history import ALWAYS_MS, AttributeHistory, Versions
from tests.recommender_fakes import SPEC, FakeRanker, Fixture, query

TEAM = FeatureSpec.parse(
    SPEC.model_dump(mode="json")
    | {
        "format": 2,
        "features": [
            {"id_feature": {"feature_name": "city", "expression": "user:city", "vocab_list": ["Rome"]}},
            {"raw_feature": {"feature_name": "hour", "expression": "context:hour", "default_value": 0}},
            {"raw_feature": {"feature_name": "price", "expression": "item:price"}},
            {"lookup_feature": {"feature_name": "taste", "map": "user:likes", "key": "item:categories"}},
        ],
    }
)
PROFILE: dict[str, Any] = {"city": "Rome", "likes": ("War:2", "Love:-1")}
ITEMS: dict[str, dict[str, Any]] = {"5": {"price": 2.5, "categories": ("War", "Love")}, "900": {"categories": ("War",)}}


def fixture() -> Fixture:
    made = Fixture(spec=TEAM, ranker=FakeRanker(spec=TEAM))
    made.catalog.plan, made.catalog.attributes = TEAM.plan, ITEMS
    made.features.profiles["7"] = PROFILE
    return made


def asked(**attributes: Any) -> Query:
    return replace(query(candidates=["5", "900", "30"]), **attributes)


def seen(block: bytes) -> tuple[dict[str, float], list[dict[str, float]]]:
    features = exposure_block.decode(block, TEAM)
    of_user = dict(zip(TEAM.user_columns, features.user_U.tolist(), strict=True))
    return of_user, [dict(zip(TEAM.item_columns, row.tolist(), strict=True)) for row in features.items_NF]


async def test_attributes_of_user_context_and_items_are_scored_and_logged() -> None:
    made = fixture()
    answer = await made.core().recommend(asked(context={"hour": 9, "page": "home"}))
    of_user, of_items = seen(made.ranker.blocks[0])
    assert {name: of_user[name] for name in TEAM.plan.user_columns} == {"city=Rome": 1, "city.unknown": 0, "city.absent": 0, "hour": 9}
    assert [tuple(row[name] for name in TEAM.plan.item_columns) for row in of_items] == [(2.5, 0, 1, 0), (0, 1, 2, 0), (0, 1, 0, 1)]
    assert answer.degraded == ()
    logged = seen(answer.features_block)[1]
    assert [item.item_id for item in answer.items] == ["900", "30", "5"]
    assert [row["price"] for row in logged] == [0, 0, 2.5]


async def test_a_profile_of_the_request_stands_in_place_of_the_stored_one() -> None:
    made = fixture()
    await made.core().recommend(asked(profile={"city": "Oslo"}))
    of_user, of_items = seen(made.ranker.blocks[0])
    assert (of_user["city=Rome"], of_user["city.unknown"]) == (0, 1)
    assert of_items[0]["taste.absent"] == 1


async def test_a_request_is_the_bits_of_the_batch() -> None:
    made = fixture()
    await made.core().recommend(asked(context={"hour": 9}))
    request = exposure_block.decode(made.ranker.blocks[0], TEAM)
    items = Versions([(item_id, ALWAYS_MS, attributes) for item_id, attributes in ITEMS.items()])
    history = AttributeHistory(TEAM.plan, Versions([("7", ALWAYS_MS, PROFILE)]), items)
    batch = history.declared(Interaction("7", "5", "rating", 4.0, 10_000, {"hour": 9}), ["5", "900", "30"])
    assert request.user_U[-len(batch.user_U) :].tobytes() == batch.user_U.tobytes()
    assert request.items_NF[:, -batch.items_NF.shape[1] :].tobytes() == batch.items_NF.tobytes()


async def test_keys_of_user_items_and_both_are_scored_and_logged_for_the_items_that_are_returned() -> None:
    keyed = [
        {"id_feature": {"feature_name": "city", "expression": "user:city", "embedding_dim": 8}},
        {"id_feature": {"feature_name": "category", "expression": "item:categories", "embedding_dim": 8}},
        {"combo_feature": {"feature_name": "both", "expression": ["context:page", "item:categories"], "embedding_dim": 4}},
    ]
    spec = FeatureSpec.parse(TEAM.model_dump(mode="json", exclude_defaults=True) | {"features": keyed})
    made = Fixture(spec=spec, ranker=FakeRanker(spec=spec))
    made.catalog.plan, made.catalog.attributes = spec.plan, ITEMS
    made.features.profiles["7"] = PROFILE
    answer = await made.core().recommend(asked(context={"page": "home"}))
    shown = exposure_block.decode(made.ranker.blocks[0], spec)
    logged = exposure_block.decode(answer.features_block, spec)
    assert shown.keys is not None and logged.keys is not None
    items = Versions([(item_id, ALWAYS_MS, attributes) for item_id, attributes in ITEMS.items()])
    history = AttributeHistory(spec.plan, Versions([("7", ALWAYS_MS, PROFILE)]), items)
    act = Interaction("7", "5", "rating", 4.0, 10_000, {"page": "home"})
    for found, item_ids in ((shown, ["5", "900", "30"]), (logged, [item.item_id for item in answer.items])):
        batch = history.declared(act, item_ids).keys
        assert found.keys is not None and batch is not None
        for one, two in ((found.keys.user, batch.user), (found.keys.items, batch.items)):
            assert (one.counts_NK.tolist(), one.keys_S.tolist()) == (two.counts_NK.tolist(), two.keys_S.tolist())
    assert shown.keys.items.counts_NK.tolist() == [[2, 2], [1, 1], [1, 1]]
    war = row_key("category", "word", "War")
    assert shown.keys.user.keys_S.view(np.uint64).tolist() == [row_key("city", "word", "Rome")]
    assert shown.keys.items.keys_S.view(np.uint64)[[0, 4]].tolist() == [war, war]


async def test_a_sequence_is_scored_and_logged_as_the_batch_has_it_with_what_is_known_of_the_items_now() -> None:
    parts = [
        {"id_feature": {"feature_name": "category", "expression": "item:categories", "embedding_dim": 8}},
        {"id_feature": {"feature_name": "item", "expression": "sequence:item_id", "embedding_dim": 4}},
        {"raw_feature": {"feature_name": "age", "expression": "sequence:age", "boundaries": [60, 3600], "embedding_dim": 4}},
        {"raw_feature": {"feature_name": "value", "expression": "sequence:value", "boundaries": [0.25, 0.75], "embedding_dim": 4}},
    ]
    sequence = {"sequence_feature": {"sequence_name": "latest", "sequence_length": 3, "features": parts}}
    spec = FeatureSpec.parse(TEAM.model_dump(mode="json", exclude_defaults=True) | {"features": [sequence]})
    made = Fixture(spec=spec, ranker=FakeRanker(spec=spec))
    made.catalog.plan, made.catalog.attributes = spec.plan, ITEMS
    user, now_ms = made.features.users.setdefault("7", UserState()), asked().now_ms
    acts = [("1", 1.0, 9_000_000), ("900", 5.0, 3_600_000), ("unknown", 3.0, 60_000), ("5", 1.0, 59_999)]
    for at, (item_id, stars, ago_ms) in enumerate(acts):
        user.apply(spec, Interaction("7", item_id, "rating", stars, now_ms - ago_ms), (), at)
    answer = await made.core().recommend(asked())
    items = Versions([(item_id, ALWAYS_MS, attributes) for item_id, attributes in ITEMS.items()])
    history = AttributeHistory(spec.plan, Versions(), items)
    for block, item_ids in ((made.ranker.blocks[0], ["5", "900", "30"]), (answer.features_block, [item.item_id for item in answer.items])):
        found = exposure_block.decode(block, spec).keys
        batch = history.declared(Interaction("7", "5", "rating", 4.0, now_ms), item_ids, user.history).keys
        assert found is not None and batch is not None
        (one,), (two,) = found.sequences, batch.sequences
        assert one.lengths_G.tolist() == two.lengths_G.tolist() == [3]
        for left, right in ((one.events, two.events), (one.candidates, two.candidates)):
            assert (left.counts_NK.tolist(), left.keys_S.tolist()) == (right.counts_NK.tolist(), right.keys_S.tolist())
    (shown,) = exposure_block.decode(made.ranker.blocks[0], spec).keys.sequences
    keys = []
    for item_id, words, age, value in (("5", ("War", "Love"), "0", "0"), ("unknown", (), "1", "1"), ("900", ("War",), "2", "2")):
        keys += [row_key("latest__category", "word", word) for word in words] or [row_key("latest__category", "absent")]
        keys += [row_key("latest__item", "word", item_id), row_key("latest__age", "bucket", age), row_key("latest__value", "bucket", value)]
    assert shown.events.keys_S.view(np.uint64).tolist() == keys


async def test_a_user_of_whom_nothing_is_known_and_a_redis_that_is_down_have_an_empty_sequence() -> None:
    part = {"id_feature": {"feature_name": "category", "expression": "item:categories", "embedding_dim": 8}}
    sequence = {"sequence_feature": {"sequence_name": "latest", "features": [part]}}
    spec = FeatureSpec.parse(TEAM.model_dump(mode="json", exclude_defaults=True) | {"features": [sequence]})
    for is_down in (False, True):
        made = Fixture(spec=spec, ranker=FakeRanker(spec=spec))
        made.catalog.plan, made.catalog.attributes, made.features.is_down = spec.plan, ITEMS, is_down
        answer = await made.core().recommend(asked())
        (shown,) = exposure_block.decode(made.ranker.blocks[0], spec).keys.sequences
        assert shown.lengths_G.tolist() == [0] and shown.candidates.counts_NK.tolist() == [[2], [1], [1]]
        assert answer.degraded == (("features_unavailable",) if is_down else ())


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"context": {"hour": "nine"}}, "context.hour: 'nine' is no number"),
        ({"context": {"hour": (1.0, 2.0)}}, r"context.hour: \(1.0, 2.0\) is no number"),
        ({"profile": {"likes": 5, "city": ((),)}}, r"profile.city: \(\) is no text"),
    ],
)
async def test_an_attribute_of_the_request_of_another_type_is_refused_by_its_name(attributes: dict[str, Any], says: str) -> None:
    made = fixture()
    with pytest.raises(InvalidQuery, match=f"^{says}"):
        await made.core().recommend(asked(**attributes))
    assert made.features.calls == []


async def test_a_stored_attribute_of_another_type_counts_as_absent_and_the_answer_says_so() -> None:
    made = fixture()
    made.features.profiles["7"] = {"city": ((),), "likes": ("War:2",)}
    answer = await made.core().recommend(asked())
    of_user, of_items = seen(made.ranker.blocks[0])
    assert answer.degraded == ("profile_unfit",)
    assert of_user["city.absent"] == 1
    assert of_items[0]["taste"] == 2


def test_the_catalogue_reads_title_categories_and_attributes_and_leaves_out_what_is_unfit(caplog: pytest.LogCaptureFixture) -> None:
    kept = ItemAttributes(TEAM.plan)
    with caplog.at_level(logging.WARNING):
        kept.put(
            {
                "5": CatalogItem(item_id="5", categories=("War",), attributes={"price": 2.5}),
                "6": CatalogItem(item_id="6", categories=("Love",), attributes={"price": "dear"}),
            }
        )
    assert kept.num_unfit == 1
    assert "item '6' is ranked without its attribute 'price': 'dear' is no number" in caplog.text
    found = Declared.of(TEAM.plan, PROFILE, {}, kept.part(["5", "6", "7"])).items_NF.tolist()
    assert found == [[2.5, 0, 2, 0], [0, 1, -1, 0], [0, 1, 0, 1]]
    kept.remove("5")
    assert Declared.of(TEAM.plan, PROFILE, {}, kept.part(["5"])).items_NF.tolist() == [[0, 1, 0, 1]]


def test_a_catalogue_without_declared_features_keeps_nothing() -> None:
    kept = ItemAttributes(Plan([]))
    kept.put({"5": CatalogItem(item_id="5", attributes={"price": 2.5})})
    assert kept.part(["5", "6"]).numbers.shape == (2, 0)
