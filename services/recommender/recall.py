"""Recall: several channels each propose items, one merge takes turns among them. Pure.

A channel is one object with one method; each stands in a file of its own in `channels/`, and `channels/registry.py` lists them. Knows
nothing about where a channel's items come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.common.ranker.recall_state import Counted, add_up
from services.common.ranker.states import GlobalState, UserState


@dataclass(frozen=True, slots=True)
class Proposal:
    """One item that one channel proposes, and why: the reason is what the user may be told."""

    item_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallRequest:
    """For whom items are to be found."""

    user_id: str
    user: UserState | None
    """None for a user never seen before, and when the online features cannot be read."""
    has_features: bool
    """False when the store of the online features failed in this request: whoever would ask it again proposes nothing."""

    @property
    def history(self) -> list[str]:
        """The user's latest items, newest first."""
        return [entry.item_id for entry in self.user.history] if self.user is not None else []


class RecallChannel(Protocol):
    """One way to find items for a user. Channels are asked side by side and know nothing of each other."""

    @property
    def name(self) -> str:
        """In lower case. The answer says `NAME_unavailable` when the channel's own source does not answer."""

    async def propose(self, request: RecallRequest, limit: int) -> Sequence[Proposal]:
        """Return at most `limit` items, best first; none when there is nothing to go by.

        Raises:
            FeaturesUnavailable: the online features cannot be read. The answer says features_unavailable and goes on without this channel.
            Unavailable: the channel's own source does not answer. The answer says `NAME_unavailable` and goes on without this channel.
        """


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
