"""Damaged feature states and exposure blocks, handed to their readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from services.common.platform.errors import CorruptArtifact
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Declared, Features, past_of
from services.common.ranker.recall_state import (
    MAX_NEIGHBOURS,
    Neighbours,
    pack_decayed,
    pack_popular,
    unpack_counts,
    unpack_decayed,
    unpack_popular,
)
from services.common.ranker.states import GlobalState, HistoryEntry, Interaction, ItemState, UserState
from tests import old_states
from tests.fuzzing import Damage

SPEC = FeatureSpec.load("model_repo/ranker/feature_spec.yaml")
_KEYED = [
    {"id_feature": {"feature_name": "city", "expression": "user:city", "embedding_dim": 4}},
    {"id_feature": {"feature_name": "tags", "expression": "item:tags", "embedding_dim": 4}},
]
KEYED_SPEC = FeatureSpec.parse(SPEC.model_dump(mode="json") | {"format": 2, "features": _KEYED})
_PARTS = [
    {"id_feature": {"feature_name": "tags", "expression": "item:tags", "embedding_dim": 4}},
    {"raw_feature": {"feature_name": "age", "expression": "sequence:age", "boundaries": [60], "embedding_dim": 4}},
]
_SEQUENCE = {"sequence_feature": {"sequence_name": "latest", "features": _PARTS}}
SEQUENCE_SPEC = FeatureSpec.parse(SPEC.model_dump(mode="json") | {"format": 2, "features": [*_KEYED, _SEQUENCE]})
OTHER_SPEC = FeatureSpec.parse(SPEC.model_dump(mode="json") | {"counters": {"half_lives_events": [50, 500, 70_000]}})


def _sound() -> Mapping[str, tuple[Sequence[bytes], Callable[[bytes], object]]]:
    """By name: sound inputs, and the reader."""
    user, timed, item, everyone, near = UserState(), UserState(), ItemState(), GlobalState(partitions=3), Neighbours(MAX_NEIGHBOURS)
    for offset in range(40):
        act = Interaction("ü", f"item {offset % 7}", "rating", 1.0 + offset % 5, offset)
        everyone.apply(SPEC, act, ("Drama", "Käse", f"c{offset}"), offset)
        user.apply(SPEC, act, ("Drama", "Käse", f"c{offset}"), offset)
        timed.apply(SEQUENCE_SPEC, act, ("Drama",), offset)
        item.apply(SPEC, act, everyone.clock, offset)
        near.add(f"ñ{offset}")
    assert timed.history[0].time_ms == 39
    sequences = [exposure_block.encode(_with_sequences(num_items), SEQUENCE_SPEC.schema_hash) for num_items in (0, 1, 5)]
    blocks = [exposure_block.encode(_features(num_items), SPEC.schema_hash) for num_items in (0, 1, 5)]
    keyed = [exposure_block.encode(_with_keys(num_items), KEYED_SPEC.schema_hash) for num_items in (0, 1, 5)]
    return {
        "user": ([UserState().to_bytes(), user.to_bytes()], lambda raw: UserState.from_bytes(SPEC, raw)),
        "item": (
            [ItemState().to_bytes(SPEC), item.to_bytes(SPEC), old_states.item_bytes(item)],
            lambda raw: ItemState.from_bytes(OTHER_SPEC, ItemState.from_bytes(SPEC, raw).to_bytes(SPEC)),
        ),
        "decayed": ([pack_decayed(3.0, 700.0, 500.0), old_states.popularity_bytes(3.0, 700.0)], lambda raw: unpack_decayed(raw, 77.0)),
        "popular": ([pack_popular(500.0, list(near.counts.items()))], lambda raw: unpack_popular(raw, 77.0, 1_000.0)),
        "global": ([GlobalState().to_bytes(), everyone.to_bytes()], GlobalState.from_bytes),
        "neighbours": ([near.to_bytes()], lambda raw: Neighbours.from_bytes(raw, MAX_NEIGHBOURS)),
        "counts": ([near.to_bytes()], unpack_counts),
        "block": (blocks, lambda raw: exposure_block.decode(raw, SPEC)),
        "blocks": (
            [b"".join(chosen) for chosen in (blocks, blocks[::-1], [blocks[2]] * 3)],
            lambda raw: exposure_block.decode_all(raw, SPEC),
        ),
        "block with keys": (keyed, lambda raw: exposure_block.decode(raw, KEYED_SPEC)),
        "blocks with keys": ([b"".join(keyed), keyed[2] * 2], lambda raw: exposure_block.decode_all(raw, KEYED_SPEC)),
        "selection with keys": (keyed, lambda raw: exposure_block.select(raw, [0]) if exposure_block.num_items(raw) else None),
        "selection": (blocks, lambda raw: exposure_block.select(raw, [0]) if exposure_block.num_items(raw) else None),
        "user with times": ([timed.to_bytes()], lambda raw: UserState.from_bytes(SEQUENCE_SPEC, raw)),
        "block with sequences": (sequences, lambda raw: exposure_block.decode(raw, SEQUENCE_SPEC)),
        "blocks with sequences": ([b"".join(sequences), sequences[2] * 2], lambda raw: exposure_block.decode_all(raw, SEQUENCE_SPEC)),
        "selection with sequences": (sequences, lambda raw: exposure_block.select(raw, [0]) if exposure_block.num_items(raw) else None),
        "schema": (blocks, exposure_block.schema_hash),
    }


def _features(num_items: int) -> Features:
    rng = np.random.default_rng(num_items)
    return Features(
        user_key=-5,
        history_keys_L=rng.integers(0, 9, 4),
        history_values_L=rng.random(4).astype(np.float16),
        user_U=rng.random(len(SPEC.user_columns)).astype(np.float16),
        items_NF=rng.random((num_items, len(SPEC.item_columns))).astype(np.float16),
    )


def _with_keys(num_items: int) -> Features:
    items = KEYED_SPEC.plan.items([{"tags": [f"t{item}"] * (item % 3)} for item in range(num_items)])
    return replace(_features(num_items), keys=Declared.of(KEYED_SPEC.plan, {"city": "Rome"}, {}, items).keys)


def _with_sequences(num_items: int) -> Features:
    plan = SEQUENCE_SPEC.plan
    items = plan.items([{}, *({"tags": [f"t{item}"] * (item % 3)} for item in range(num_items))])
    history = [HistoryEntry(f"i{at}", 0.5, 1_000 * at) for at in range(num_items)]
    rows_N = np.arange(1, num_items + 1)
    past = past_of(history, 61_000, items, rows_N)
    events = plan.events([{"city": "Rome"}], [{}])
    declared = Declared.of_rows(plan, events, items, rows_N, past, [f"i{at}" for at in range(num_items)])
    return replace(_features(num_items), keys=declared.keys)


READERS = _sound()


def fuzz(reader: str, count: int, *, seed: int) -> Counter[str]:
    """Hand `count` damaged inputs to a reader; return how many it read and how many it refused. Any other error passes through."""
    sound, read = READERS[reader]
    damage, outcomes = Damage(seed), Counter[str]()
    for _ in range(count):
        try:
            read(damage.of_bytes(sound))
        except CorruptArtifact:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
    return outcomes
