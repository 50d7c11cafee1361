"""Recall: several channels each propose items, one merge takes turns among them. Pure.

A channel is a list of item ids, best first, each with the reason that the user may be told. Knows nothing about where a
channel's items come from.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.common.ranker.recall_state import Counted, add_up
from services.common.ranker.states import GlobalState


@dataclass(frozen=True, slots=True)
class Proposal:
    """One item that one channel proposes, and why."""

    item_id: str
    reason: str


def merged(channels: Sequence[Sequence[Proposal]], *, limit: int, allowed: Callable[[str], bool]) -> dict[str, list[str]]:
    """Take turns among the channels until `limit` items are found or all are exhausted.

    Args:
        channels: proposals per channel, best first; the earlier channel goes first in each round.
        limit: most items to return.
        allowed: says whether an item may be recalled at all.

    Returns:
        Item id -> the reasons of every channel that proposes it, in the order in which the items were found.
    """
    found: dict[str, list[str]] = {}
    queues = [iter(channel) for channel in channels]
    while queues and len(found) < limit:
        still_open = []
        for queue in queues:
            proposal = next((p for p in queue if p.item_id not in found and allowed(p.item_id)), None)
            if proposal is None:
                continue
            still_open.append(queue)
            if len(found) < limit:
                found[proposal.item_id] = []
        queues = still_open
    for channel in channels:
        for proposal in channel:
            reasons = found.get(proposal.item_id)
            if reasons is not None and proposal.reason not in reasons:
                reasons.append(proposal.reason)
    return found


def similar_items(neighbours_by_seed: Sequence[tuple[str, Sequence[Counted]]], *, limit: int) -> list[Proposal]:
    """Return the items most often taken together with the seeds, best first.

    Args:
        neighbours_by_seed: (seed item id, its neighbours with counts) of the user's latest items. Counts of one item under several seeds
            add up; the reason names the seed that contributes most.
        limit: most items to return.
    """
    seeds = {seed for seed, _ in neighbours_by_seed}
    strongest: dict[str, Counted] = {}
    for seed, neighbours in neighbours_by_seed:
        for item_id, count in neighbours:
            if item_id not in strongest or count > strongest[item_id][1]:
                strongest[item_id] = (seed, count)
    best = add_up([neighbours for _, neighbours in neighbours_by_seed], limit + len(seeds))
    return [Proposal(item_id, f"similar_to:{strongest[item_id][0]}") for item_id, _ in best if item_id not in seeds][:limit]


def popular_now(lists_P: Sequence[Sequence[Counted]], globals_P: Sequence[GlobalState | None], half_life_events: float) -> list[Counted]:
    """Return the popular items of all partials, largest first.

    Args:
        lists_P: per partial, the base's first, decayed counts as of its last write. Partitions write all the time; the base's list
            stays as it was, so it is brought up to date here, or yesterday's favourites would never leave.
        globals_P: the GlobalStates of the same partials.
        half_life_events: with which the counts were decayed.
    """
    live_acts = sum(state.tally.acts for state in globals_P[1:] if state is not None)
    keep = math.exp2(-live_acts / half_life_events)
    base = [(item_id, count * keep) for item_id, count in lists_P[0]]
    return add_up([base, *lists_P[1:]], sum(map(len, lists_P)))


def fresh_items(newest: Sequence[str], user_id: str, *, limit: int) -> list[Proposal]:
    """Return up to `limit` of the newest items, starting at a place that depends on the user, so that every new item meets somebody."""
    if not newest:
        return []
    start = int.from_bytes(hashlib.blake2b(user_id.encode(), digest_size=8).digest(), "little") % len(newest)
    return [Proposal(item_id, "cold_start") for item_id in (*newest[start:], *newest[:start])][:limit]
