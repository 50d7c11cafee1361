"""Overlaid sessions: recorded events re-timed so that many users are active at once, as in a busy service. Pure; seeded.

Months of original time of a small site would otherwise give one user after the other, which no service that learns live ever sees.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import NamedTuple, TypeVar

import numpy as np

OwnT = TypeVar("OwnT", bound=Sized)
"""The events of one user."""


class Overlaid(NamedTuple):
    """One event's place in the overlaid order.

    Attributes:
        event: its index in the recorded order.
        at_s: when it happens, in seconds from the start.
        block: number of its (user, recorded second) block; events of a block happen together.
    """

    event: int
    at_s: float
    block: int


def overlay(
    user_ids: Sequence[str], times_s: Sequence[int], *, active: int = 100, gap_cap_s: float = 20.0, seed: int = 0
) -> list[Overlaid]:
    """Re-time events: `active` users at once, each in own order with own gaps, capped; a user who is done makes room for the next.

    Users enter in the order of their first event; the first ones are spread over `gap_cap_s` (seeded) so that they do not march in step.

    Args:
        user_ids: of the events, in the recorded order.
        times_s: of the events, not falling.
    """
    by_user: dict[str, list[int]] = {}
    for index, user_id in enumerate(user_ids):
        by_user.setdefault(user_id, []).append(index)
    turns = take_turns(
        by_user.values(), len(by_user), lambda own, position: times_s[own[position]], active=active, gap_cap_s=gap_cap_s, seed=seed
    )
    return [Overlaid(own[position], at_s, block) for own, position, at_s, block in turns]


def take_turns(
    users: Iterable[OwnT],
    num_users: int,
    second: Callable[[OwnT, int], int],
    *,
    active: int = 100,
    gap_cap_s: float = 20.0,
    seed: int = 0,
) -> Iterator[tuple[OwnT, int, float, int]]:
    """Yield events in the order of `overlay`, each as (its user's events, its place in those, when it happens, block).

    Args:
        users: the events of each user, in the order of time; users in the order of their first event. They are asked for as they enter.
        num_users: how many there are.
        second: gives the recorded second of one of a user's events.
        active: see `overlay`.
        gap_cap_s: see `overlay`.
        seed: see `overlay`.
    """
    waiting = iter(users)
    starts = np.random.default_rng(seed).uniform(0.0, gap_cap_s, size=min(active, num_users))
    # (time of the next event, order of entry, the user's events, which is next, its recorded second)
    heap = [(float(start), entry, own := next(waiting), 0, second(own, 0)) for entry, start in enumerate(starts)]
    heapq.heapify(heap)
    num_entered = len(heap)
    block = -1
    while heap:
        at_s, entry, own, position, time_s = heapq.heappop(heap)
        block += 1
        next_s = time_s
        while next_s == time_s:
            yield own, position, at_s, block
            position += 1
            if position == len(own):
                break
            next_s = second(own, position)
        if position < len(own):
            heapq.heappush(heap, (at_s + min(float(next_s - time_s), gap_cap_s), entry, own, position, next_s))
        elif (entering := next(waiting, None)) is not None:
            heapq.heappush(heap, (at_s + gap_cap_s, num_entered, entering, 0, second(entering, 0)))
            num_entered += 1
