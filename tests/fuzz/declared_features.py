"""Compares a batch, requests and the stream over one random list of declared features and random attributes: every bit must be the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from services.common.ranker.declared.encodings import Keys
from services.common.ranker.declared.plan import Outputs, Plan
from tests.random_features import RandomFeatures


def keys_of(keys: Keys, row: int) -> list[int]:
    return list(keys.keys_S[keys.offsets[row] : keys.offsets[row + 1]].tolist())


def row_of(outputs: Outputs, plan: Plan, event: int, pair: int) -> dict[str, Any]:
    """Everything that the network would see of one pair, by name, as bits."""
    seen: dict[str, Any] = dict(zip(plan.user_columns, outputs.user_GU[event].view(np.uint16).tolist(), strict=True))
    seen |= dict(zip(plan.item_columns, outputs.items_BF[pair].view(np.uint16).tolist(), strict=True))
    seen |= {f"keys of {name}": keys_of(keys, event) for name, keys in outputs.event_keys.items()}
    seen |= {f"keys of {name}": keys_of(keys, pair) for name, keys in outputs.pair_keys.items()}
    # As they stand in the block.
    keyed = plan.keyed(outputs)
    if keyed is not None:
        for side, at in ((keyed.user, event), (keyed.items, pair)):
            own = side.take(np.asarray([at]))
            seen[f"row of keys {side is keyed.user}"] = (own.counts_NK.tolist(), own.keys_S.tolist())
    for name, sequence in outputs.sequences.items():
        begin, end = sequence.offsets[event], sequence.offsets[event + 1]
        seen[f"sequence {name}"] = sequence.numbers_SD[begin:end].view(np.uint16).tolist()
        seen |= {f"sequence {name} {part}": [keys_of(keys, at) for at in range(begin, end)] for part, keys in sequence.keys.items()}
    return seen


def compare_ways(seed: int) -> tuple[int, int]:
    """Compare the three ways over one random list of features; return how many numbers and keys were compared."""
    made = RandomFeatures(seed)
    plan = Plan(made.features)
    num_events, num_items = made.random.randint(1, 7), made.random.choice((1, 3, 9, 40))
    num_pairs = made.random.choice((1, 14, 33))
    users, contexts = ([made.row(side) for _ in range(num_events)] for side in ("user", "context"))
    items, histories = [made.row("item") for _ in range(num_items)], [made.events() for _ in range(num_events)]
    event_B = np.asarray([made.random.randrange(num_events) for _ in range(num_pairs)], dtype=np.int64)
    item_B = np.asarray([made.random.randrange(num_items) for _ in range(num_pairs)], dtype=np.int64)
    events, of_items = plan.events(users, contexts, histories), plan.items(items)
    batch = plan.run(events, of_items, event_B, item_B)
    assert np.isfinite(batch.user_GU).all() and np.isfinite(batch.items_BF).all()
    for event in range(num_events):
        pairs = np.flatnonzero(event_B == event)
        alone = plan.events([users[event]], [contexts[event]], [histories[event]])
        candidates = plan.items([items[at] for at in item_B[pairs]])
        request = plan.run(alone, candidates, np.zeros(len(pairs), np.int64), np.arange(len(pairs)))
        for row, pair in enumerate(pairs):
            expected = row_of(batch, plan, event, pair)
            assert row_of(request, plan, 0, row) == expected, (seed, made.raw)
            stream = plan.run(alone, plan.items([items[item_B[pair]]]), np.zeros(1, np.int64), np.zeros(1, np.int64))
            assert row_of(stream, plan, 0, 0) == expected, (seed, made.raw)
    num_keys = sum(len(keys.keys_S) for keys in (*batch.event_keys.values(), *batch.pair_keys.values()))
    return batch.user_GU.size + batch.items_BF.size, num_keys
