from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import replace

import numpy as np
import pytest

from services.common.platform.errors import CorruptArtifact, InvalidInput
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Declared, Features

SPEC = FeatureSpec.load("model_repo/ranker/feature_spec.yaml")


def features(num_items: int, num_history: int) -> Features:
    rng = np.random.default_rng(num_items)
    return Features(
        user_key=-5,
        history_keys_L=rng.integers(-(2**62), 2**62, num_history),
        history_values_L=rng.random(num_history).astype(np.float16),
        user_U=rng.normal(size=len(SPEC.user_columns)).astype(np.float16),
        items_NF=rng.normal(size=(num_items, len(SPEC.item_columns))).astype(np.float16),
    )


def assert_equal(left: Features, right: Features) -> None:
    assert left.user_key == right.user_key
    for name in ("history_keys_L", "history_values_L", "user_U", "items_NF"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


@pytest.mark.parametrize(("num_items", "num_history"), [(0, 0), (1, 0), (3, 2), (100, 20)])
def test_a_block_gives_back_exactly_what_went_in(num_items: int, num_history: int) -> None:
    original = features(num_items, num_history)
    assert_equal(exposure_block.decode(exposure_block.encode(original, SPEC.schema_hash), SPEC), original)


def test_twenty_items_fit_in_two_kilobytes() -> None:
    assert len(exposure_block.encode(features(20, SPEC.history.length), SPEC.schema_hash)) <= 2048


def test_select_keeps_the_user_part_and_the_named_rows_in_order() -> None:
    original = features(10, 4)
    block = exposure_block.encode(original, SPEC.schema_hash)
    part = exposure_block.decode(exposure_block.select(block, [7, 0]), SPEC)
    np.testing.assert_array_equal(part.items_NF, original.items_NF[[7, 0]])
    np.testing.assert_array_equal(part.history_keys_L, original.history_keys_L)
    assert exposure_block.num_items(exposure_block.select(block, [])) == 0
    with pytest.raises(IndexError):
        exposure_block.select(block, [10])


def test_a_foreign_cut_or_unknown_block_is_refused_with_its_reason() -> None:
    block = exposure_block.encode(features(2, 1), SPEC.schema_hash)
    foreign = exposure_block.encode(features(2, 1), "00" * 8)
    with pytest.raises(CorruptArtifact, match="0000000000000000"):
        exposure_block.decode(foreign, SPEC)
    assert exposure_block.schema_hash(foreign) == "00" * 8
    for cut in (0, 5, len(block) - 1):
        with pytest.raises(CorruptArtifact):
            exposure_block.decode(block[:cut], SPEC)
    with pytest.raises(CorruptArtifact, match="version 9"):
        exposure_block.decode(b"\x09" + block[1:], SPEC)


@pytest.mark.parametrize("sizes", [[], [(1, 0)], [(3, 2), (0, 0), (100, 20), (1, 1)], [(2, 20)] * 16])
def test_blocks_one_behind_the_other_are_told_apart(sizes: list[tuple[int, int]]) -> None:
    originals = [features(*size) for size in sizes]
    found = exposure_block.decode_all(b"".join(exposure_block.encode(each, SPEC.schema_hash) for each in originals), SPEC)
    assert len(found) == len(originals)
    for left, right in zip(found, originals, strict=True):
        assert_equal(left, right)


def test_one_bad_block_among_others_is_refused() -> None:
    good, foreign = (exposure_block.encode(features(2, 1), schema) for schema in (SPEC.schema_hash, "00" * 8))
    for blocks, said in (
        (good + foreign, "0000000000000000"),
        (good + good[:-1], "its head says"),
        (good[:-1] + good, "version|its head says|feature spec"),
        (good + b"\x01", "1 bytes are too few"),
        (good + b"\x09" + good[1:], "version 9"),
    ):
        with pytest.raises(CorruptArtifact, match=said):
            exposure_block.decode_all(blocks, SPEC)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"items_NF": np.zeros((3, 256), np.float16)}, "256 item columns"),
        ({"user_U": np.zeros(256, np.float16)}, "256 user"),
        ({"history_values_L": np.zeros(256, np.float16), "history_keys_L": np.zeros(256, np.int64)}, "256 of history"),
        ({"items_NF": np.zeros((65_536, 1), np.float16)}, "65536 items"),
    ],
)
def test_what_the_head_cannot_say_is_refused_by_name(changed: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        exposure_block.encode(dataclasses.replace(features(3, 2), **changed), SPEC.schema_hash)
    largest = {name: array[:255] if array.ndim == 1 else array[:65_535, :255] for name, array in changed.items()}
    assert exposure_block.encode(dataclasses.replace(features(3, 2), **largest), SPEC.schema_hash)


KEYED_SPEC = FeatureSpec.parse(
    SPEC.model_dump(mode="json")
    | {
        "format": 2,
        "features": [
            {"id_feature": {"feature_name": "city", "expression": "user:city", "embedding_dim": 4}},
            {"id_feature": {"feature_name": "tags", "expression": "item:tags", "embedding_dim": 4}},
            {"combo_feature": {"feature_name": "both", "expression": ["user:city", "item:tags"], "embedding_dim": 8}},
        ],
    }
)
TAGS = [["a"], [], ["b", "a", "c"], ["d", "e"]]


def with_keys(tags: list[list[str]], city: object = ("Rome", "Oslo")) -> Features:
    plan = KEYED_SPEC.plan
    made = Declared.of(plan, {"city": list(city)}, {}, plan.items([{"tags": words} for words in tags]))
    return dataclasses.replace(features(len(tags), 2), keys=made.keys)


def assert_same_keys(left: Features, right: Features) -> None:
    assert_equal(left, right)
    assert left.keys is not None and right.keys is not None
    for one, two in ((left.keys.user, right.keys.user), (left.keys.items, right.keys.items)):
        np.testing.assert_array_equal(one.counts_NK, two.counts_NK)
        np.testing.assert_array_equal(one.keys_S, two.keys_S)


@pytest.mark.parametrize("tags", [[], [["a"]], TAGS])
def test_keys_come_back_as_they_were(tags: list[list[str]]) -> None:
    original = with_keys(tags)
    block = exposure_block.encode(original, KEYED_SPEC.schema_hash)
    assert_same_keys(exposure_block.decode(block, KEYED_SPEC), original)
    assert exposure_block.num_items(block) == len(tags)
    assert exposure_block.schema_hash(block) == KEYED_SPEC.schema_hash


def test_items_are_selected_with_their_keys() -> None:
    original = with_keys(TAGS)
    block = exposure_block.encode(original, KEYED_SPEC.schema_hash)
    for rows in ([2, 0], [3], [], [1, 1]):
        part = exposure_block.select(block, rows)
        assert_same_keys(exposure_block.decode(part, KEYED_SPEC), original.only(rows))
        assert part == exposure_block.encode(original.only(rows), KEYED_SPEC.schema_hash)
    assert original.only([2]).keys.items.keys_S.tolist() == with_keys([TAGS[2]]).keys.items.keys_S.tolist()


def test_blocks_with_keys_may_stand_one_behind_the_other() -> None:
    parts = [with_keys(TAGS), with_keys([]), with_keys(TAGS[:1], city=())]
    blocks = b"".join(exposure_block.encode(part, KEYED_SPEC.schema_hash) for part in parts)
    for found, part in zip(exposure_block.decode_all(blocks, KEYED_SPEC), parts, strict=True):
        assert_same_keys(found, part)


def test_a_block_of_a_spec_without_keyed_features_has_no_section_and_the_bytes_of_before() -> None:
    of_now = features(3, 2)
    assert exposure_block.encode(of_now, SPEC.schema_hash)[0] == exposure_block.VERSION == 1
    # Of five and nine columns, however many there are today; the hash is of what commit 0f5d000 wrote.
    plain = replace(
        of_now,
        history_keys_L=np.array([1, -2], np.int64),
        history_values_L=np.array([0.25, 0.5], np.float16),
        user_U=np.arange(5, dtype=np.float16),
        items_NF=np.arange(27, dtype=np.float16).reshape(3, 9),
    )
    assert hashlib.sha256(exposure_block.encode(plain, "0123456789abcdef")).hexdigest()[:16] == "626606079da2015c"
    assert exposure_block.encode(with_keys(TAGS), KEYED_SPEC.schema_hash)[0] == 2


def test_a_block_with_damaged_or_missing_keys_is_refused_wherever_it_is_cut() -> None:
    block = exposure_block.encode(with_keys(TAGS), KEYED_SPEC.schema_hash)
    for cut in range(len(block)):
        with pytest.raises(CorruptArtifact):
            exposure_block.decode(block[:cut], KEYED_SPEC)
    # Of the user two cities; of the items 7 tags, absent ones included, and 13 pairs.
    counts_at = len(block) - 8 * (2 + 7 + 13) - 2 * (1 + 2 * len(TAGS))
    other = bytearray(block)
    other[counts_at] += 1
    # The joiner looks at the number of items alone before it selects.
    for read in (lambda one: exposure_block.decode(one, KEYED_SPEC), exposure_block.num_items):
        with pytest.raises(CorruptArtifact, match=r"22 keys \(at most 262144\), its counts say 23"):
            read(bytes(other))
    with pytest.raises(CorruptArtifact, match=r"keys of \(0, 0\) features of user and item, the feature spec has \(1, 2\)"):
        exposure_block.decode(exposure_block.encode(features(3, 2), KEYED_SPEC.schema_hash), KEYED_SPEC)
    with pytest.raises(CorruptArtifact, match=r"keys of \(1, 2\) features of user and item, the feature spec has \(0, 0\)"):
        exposure_block.decode(exposure_block.encode(with_keys(TAGS), SPEC.schema_hash), SPEC)


def test_more_keys_than_a_block_holds_are_refused_with_what_to_do() -> None:
    words = [str(number) for number in range(4_000)]
    with pytest.raises(InvalidInput, match=r"keys \(at most 262144\), 4000 of one feature .* ask for fewer candidates"):
        exposure_block.encode(with_keys([words] * 66), KEYED_SPEC.schema_hash)
    exposure_block.encode(with_keys([words] * 10), KEYED_SPEC.schema_hash)
