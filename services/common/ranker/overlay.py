"""Overlaid sessions: recorded events re-timed so that many users are active at once, as in a busy service. Pure; seeded.

Months of original time of a small site would otherwise give one user after the other, which no service that learns live ever sees.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


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
    waiting = deque(by_user.values())
    starts = np.random.default_rng(seed).uniform(0.0, gap_cap_s, size=min(active, len(waiting)))
    # (time of the next event, order of entry, the user's events, which is next)
    heap = [(float(start), entry, waiting.popleft(), 0) for entry, start in enumerate(starts)]
    heapq.heapify(heap)
    num_entered = len(heap)
    order: list[Overlaid] = []
    block = -1
    while heap:
        at_s, entry, own, position = heapq.heappop(heap)
        block += 1
        time_s = times_s[own[position]]
        while position < len(own) and times_s[own[position]] == time_s:
            order.append(Overlaid(own[position], at_s, block))
            position += 1
        if position < len(own):
            heapq.heappush(heap, (at_s + min(float(times_s[own[position]] - time_s), gap_cap_s), entry, own, position))
        elif waiting:
            heapq.heappush(heap, (at_s + gap_cap_s, num_entered, waiting.popleft(), 0))
            num_entered += 1
    return order
