"""Compares a batch, requests and the stream over one random list of declared features and random attributes: every bit must be the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from services.common.ranker.declared.encodings import Keys
from services.common.ranker.declared.item_parts import ItemParts
from services.common.ranker.declared.plan import Outputs, Part, Plan
from services.common.ranker.declared.row_keys import SequenceKeys
from services.common.ranker.declared.sequences import Past
from services.common.ranker.declared.values import Int64Array
from tests.random_features import RandomFeatures


def keys_of(keys: Keys, row: int) -> list[int]:
    return list(keys.keys_S[keys.offsets[row] : keys.offsets[row + 1]].tolist())


def row_of(plan: Plan, outputs: Outputs, sequences: tuple[SequenceKeys, ...], event: int, pair: int) -> dict[str, Any]:
    """Everything that the network would see of one pair, by name, as bits."""
    seen: dict[str, Any] = dict(zip(plan.user_columns, outputs.user_GU[event].view(np.uint16).tolist(), strict=True))
    seen |= dict(zip(plan.item_columns, outputs.items_BF[pair].view(np.uint16).tolist(), strict=True))
    seen |= {f"keys of {name}": keys_of(keys, event) for name, keys in outputs.event_keys.items()}
    seen |= {f"keys of {name}": keys_of(keys, pair) for name, keys in outputs.pair_keys.items()}
    # As they stand in the block.
    keyed = plan.keyed(outputs, sequences)
    if keyed is not None:
        own = keyed.taken(np.asarray([event]), np.asarray([pair]))
        sides = [own.user, own.items, *(side for one in own.sequences for side in (one.events, one.candidates))]
        seen["row of keys"] = [(side.counts_NK.tolist(), side.keys_S.tolist()) for side in sides]
        seen["lengths"] = [one.lengths_G.tolist() for one in own.sequences]
    return seen


def compare_ways(seed: int) -> tuple[int, int, int]:
    """Compare the three ways over one random list of features; return how many numbers, keys and keys of sequences were compared."""
    made = RandomFeatures(seed)
    plan = Plan(made.features)
    num_events, num_items = made.random.randint(1, 7), made.random.choice((1, 3, 9, 40))
    num_pairs = made.random.choice((1, 14, 33))
    users, contexts = ([made.row(side) for _ in range(num_events)] for side in ("user", "context"))
    items, histories = [made.row("item") for _ in range(num_items)], [made.history(num_items) for _ in range(num_events)]
    event_B = np.asarray([made.random.randrange(num_events) for _ in range(num_pairs)], dtype=np.int64)
    item_B = np.asarray([made.random.randrange(num_items) for _ in range(num_pairs)], dtype=np.int64)
    events, of_items = plan.events(users, contexts), plan.items(items)
    batch = plan.run(events, of_items, event_B, item_B)
    # The batch has the items of all histories at hand; a request asks a catalogue for those of its own.
    catalogue = ItemParts(plan)
    catalogue.put({f"i{at}": row for at, row in enumerate(items)})
    whole = plan.sequence_keys(past_of_all(histories, of_items), [f"i{at}" for at in item_B.tolist()], of_items, item_B)
    assert np.isfinite(batch.user_GU).all() and np.isfinite(batch.items_BF).all()
    for event in range(num_events):
        pairs = np.flatnonzero(event_B == event)
        alone = plan.events([users[event]], [contexts[event]])
        rows, _, _ = histories[event]
        past = past_of_all([histories[event]], catalogue.part([f"i{at}" for at in rows]), np.arange(len(rows)))
        ids = [f"i{at}" for at in item_B[pairs].tolist()]
        candidates, every = catalogue.part(ids), np.arange(len(pairs))
        request = plan.run(alone, candidates, np.zeros(len(pairs), np.int64), every)
        of_request = plan.sequence_keys(past, ids, candidates, every)
        for row, pair in enumerate(pairs):
            expected = row_of(plan, batch, whole, event, pair)
            assert row_of(plan, request, of_request, 0, row) == expected, (seed, made.raw)
            one = plan.items([items[item_B[pair]]])
            stream = plan.run(alone, one, np.zeros(1, np.int64), np.zeros(1, np.int64))
            of_stream = plan.sequence_keys(past, [ids[row]], one, np.zeros(1, np.int64))
            assert row_of(plan, stream, of_stream, 0, 0) == expected, (seed, made.raw)
    num_keys = sum(len(keys.keys_S) for keys in (*batch.event_keys.values(), *batch.pair_keys.values()))
    num_of_sequences = sum(len(one.events.keys_S) + len(one.candidates.keys_S) for one in whole)
    return batch.user_GU.size + batch.items_BF.size, num_keys, num_of_sequences


def past_of_all(histories: list[tuple[list[int], list[float], list[float]]], items: Part, rows_P: Int64Array | None = None) -> Past:
    """The events of several users; by `rows_P` where `items` are those of the events one by one."""
    rows = [row for rows, _, _ in histories for row in rows]
    return Past(
        offsets=np.cumsum([0, *(len(rows) for rows, _, _ in histories)], dtype=np.int64),
        item_ids=[f"i{row}" for row in rows],
        values_P=np.asarray([value for _, values, _ in histories for value in values], dtype=np.float64),
        ages_P=np.asarray([age for _, _, ages in histories for age in ages], dtype=np.float64),
        item_keys=items.keys,
        rows_P=np.asarray(rows, dtype=np.int64) if rows_P is None else rows_P,
    )
