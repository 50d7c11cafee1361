"""Sequences in the exposure block: read as they were written, small, bounded, and no byte of other specs' blocks changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from services.common.platform.errors import CorruptArtifact, InvalidInput
from services.common.ranker import exposure_block, sequence_section
from services.common.ranker.declared.row_keys import KeyedRows, RowKeys, SequenceKeys
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Declared, Features, past_of
from services.common.ranker.states import NO_TIME, HistoryEntry, Interaction, UserState

SPEC = FeatureSpec.load("model_repo/ranker/feature_spec.yaml")
PARTS: list[dict[str, Any]] = [
    {"id_feature": {"feature_name": "item", "expression": "sequence:item_id", "embedding_dim": 8}},
    {"id_feature": {"feature_name": "category", "expression": "item:categories", "embedding_dim": 8}},
    {"raw_feature": {"feature_name": "age", "expression": "sequence:age", "boundaries": [60, 3600, 86400, 604800], "embedding_dim": 4}},
]


def with_sequence(parts: list[dict[str, Any]], *others: dict[str, Any], length: int = 20) -> FeatureSpec:
    sequence = {"sequence_feature": {"sequence_name": "latest", "sequence_length": length, "features": parts}}
    return FeatureSpec.parse(SPEC.model_dump(mode="json") | {"format": 2, "features": [*others, sequence]})


def shown(spec: FeatureSpec, num_items: int, num_events: int, words: int = 1) -> Features:
    """Features of a request: every item has so many of eight categories, the events go back some weeks."""
    rng = np.random.default_rng(0)
    ids = [f"i{at}" for at in range(num_items + num_events)]
    items = spec.plan.items([{"categories": [f"c{(at + word) % 8}" for word in range(words)]} for at in range(len(ids))])
    history = [HistoryEntry(one, 0.5, 1_000_000_000 - 40_000_000 * at) for at, one in enumerate(ids[num_items:])]
    rows_N = np.arange(num_items)
    past = past_of(history, 1_000_030_000, items, np.arange(num_items, len(ids)))
    declared = Declared.of_rows(spec.plan, spec.plan.events([{}], [{}]), items, rows_N, past, ids[:num_items])
    return Features(
        user_key=-5,
        history_keys_L=rng.integers(-(1 << 62), 1 << 62, num_events),
        history_values_L=rng.random(num_events).astype(np.float16),
        user_U=rng.random(len(spec.user_columns)).astype(np.float16),
        items_NF=rng.random((num_items, len(spec.item_columns))).astype(np.float16),
        keys=declared.keys,
    )


def assert_same(one: Features, two: Features) -> None:
    assert one.keys is not None and two.keys is not None
    for left, right in zip(one.keys.sequences, two.keys.sequences, strict=True):
        assert left.lengths_G.tolist() == right.lengths_G.tolist()
        for first, second in ((left.events, right.events), (left.candidates, right.candidates)):
            assert first.counts_NK.tolist() == second.counts_NK.tolist()
            assert first.keys_S.tolist() == second.keys_S.tolist()


@pytest.mark.parametrize(("items", "events", "words"), [(0, 0, 1), (1, 0, 0), (3, 7, 1), (20, 20, 2), (300, 20, 3)])
def test_sequences_come_back_as_they_were_whole_selected_and_one_behind_the_other(items: int, events: int, words: int) -> None:
    spec = with_sequence(PARTS)
    original = shown(spec, items, events, words)
    block = exposure_block.encode(original, spec.schema_hash)
    assert block[0] == 3 and exposure_block.num_items(block) == items
    assert_same(exposure_block.decode(block, spec), original)
    rows = list(range(0, items, 2))[::-1]
    part = exposure_block.select(block, rows)
    assert part == exposure_block.encode(original.only(rows), spec.schema_hash)
    for found, one in zip(exposure_block.decode_all(block + part, spec), (original, original.only(rows)), strict=True):
        assert_same(found, one)


def test_a_block_of_20_items_and_30_features_with_20_events_of_3_parts_has_at_most_2_kb() -> None:
    columns = [{"raw_feature": {"feature_name": f"f{at}", "expression": f"item:f{at}", "default_value": 0}} for at in range(30)]
    others = columns[: 29 - len(SPEC.user_columns) - len(SPEC.item_columns)]
    spec = with_sequence(PARTS, *others)
    assert len(spec.user_columns) + len(spec.item_columns) + 1 == 30
    block = exposure_block.encode(shown(spec, 20, 20), spec.schema_hash)
    without = exposure_block.encode(dataclasses.replace(shown(spec, 20, 20), keys=None), spec.schema_hash)
    assert len(block) <= 2_000, (len(block), len(without))


def test_a_longer_sequence_another_spec_and_a_block_without_one_are_refused() -> None:
    spec, shorter = with_sequence(PARTS), with_sequence(PARTS, length=3)
    block = exposure_block.encode(shown(spec, 3, 7), shorter.schema_hash)
    with pytest.raises(CorruptArtifact, match=r"sequences of .* parts of events and candidates, the feature spec has"):
        exposure_block.decode(block, shorter)
    plain = exposure_block.encode(dataclasses.replace(shown(spec, 3, 7), keys=None), spec.schema_hash)
    with pytest.raises(CorruptArtifact, match="exposure block: version 1, under this feature spec it is 3"):
        exposure_block.decode(plain, spec)
    with pytest.raises(CorruptArtifact, match="exposure block: version 3, under this feature spec it is 1"):
        exposure_block.decode(exposure_block.encode(shown(spec, 3, 7), SPEC.schema_hash), SPEC)


@pytest.mark.parametrize("times", [1, 10])
def test_more_keys_than_a_section_holds_are_refused_with_what_to_do(times: int) -> None:
    def sequence(keys: np.ndarray) -> SequenceKeys:
        none = RowKeys(np.zeros((0, 1), np.int64), np.zeros(0, np.int64))
        return SequenceKeys(np.zeros(1, np.int64), none, RowKeys(np.ones((len(keys), 1), np.int64), keys))

    with pytest.raises(InvalidInput, match="ask for fewer candidates, or give items fewer words"):
        sequence_section.encode([sequence(np.arange(65_535 * times + 1))])
    with pytest.raises(InvalidInput, match=r"sequences have [0-9]+ keys .at most 262144"):
        sequence_section.encode([sequence(np.zeros((1 << 18) * times + 1, np.int64))])
    assert sequence_section.decode(sequence_section.encode([sequence(np.arange(65_535))]), 0, 65_535)[0].candidates.keys_S[-1] == 65_534


def test_a_batch_of_keys_has_no_sequences_when_the_spec_has_none() -> None:
    none = RowKeys.of([], 1)
    assert KeyedRows.joined([KeyedRows(none, none)] * 2).sequences == ()


def test_a_state_knows_times_only_under_a_spec_that_asks_for_ages_and_reads_states_of_before() -> None:
    ages, no_ages = with_sequence(PARTS), with_sequence(PARTS[:2])
    timed, plain = UserState(), UserState()
    for offset in range(30):
        act = Interaction("u", f"i{offset}", "rating", 5.0, 1_000 * offset)
        timed.apply(ages, act, ("Drama",), offset)
        plain.apply(no_ages, act, ("Drama",), offset)
    old = UserState()
    for offset in range(30):
        old.apply(SPEC, Interaction("u", f"i{offset}", "rating", 5.0, 1_000 * offset), ("Drama",), offset)
    assert plain.to_bytes() == old.to_bytes()
    assert len(timed.to_bytes()) == len(old.to_bytes()) + 8 * 20
    assert UserState.from_bytes(ages, timed.to_bytes()) == timed
    assert [one.time_ms for one in timed.history[:2]] == [29_000, 28_000]
    # A state of before gets times event by event; one with times is read under any spec.
    mixed = UserState.from_bytes(ages, old.to_bytes())
    mixed.apply(ages, Interaction("u", "new", "rating", 5.0, 99_000), (), 31)
    assert [one.time_ms for one in UserState.from_bytes(SPEC, mixed.to_bytes()).history[:2]] == [99_000, NO_TIME]
    with pytest.raises(CorruptArtifact, match="too few"):
        UserState.from_bytes(SPEC, timed.to_bytes()[:-1])
    with pytest.raises(CorruptArtifact, match="bytes too many"):
        UserState.from_bytes(SPEC, timed.to_bytes() + b"\x00")
