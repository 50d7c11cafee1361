"""What the demo replays: users' sessions, block by block, with their gaps. Pure; knows nothing of the mesh.

A block is what one user rated within one second of the original data. All of a block is scored before any of it is
reported, since most ratings of MovieLens share their second with another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtests.movielens import Rating

GAP_CAP_S = 20.0


@dataclass(frozen=True, slots=True)
class Block:
    """Ratings of one user in one second, and the original gap in seconds (capped) since the user's last block."""

    gap_s: float
    ratings: tuple[Rating, ...]


@dataclass(frozen=True, slots=True)
class Session:
    """All live blocks of one user in their own order."""

    user_id: str
    blocks: tuple[Block, ...]


def sessions(live: Sequence[Rating]) -> list[Session]:
    """Group live ratings, given in the order of time, into one session per user; users come in the order of their first one."""
    by_user: dict[str, list[Rating]] = {}
    for rating in live:
        by_user.setdefault(rating.user_id, []).append(rating)
    return [Session(user, tuple(_blocks(ratings))) for user, ratings in by_user.items()]


def _blocks(ratings: Sequence[Rating]) -> Iterator[Block]:
    start, previous_s = 0, ratings[0].time_s
    for index in range(1, len(ratings) + 1):
        if index < len(ratings) and ratings[index].time_s == ratings[start].time_s:
            continue
        yield Block(min(float(ratings[start].time_s - previous_s), GAP_CAP_S), tuple(ratings[start:index]))
        previous_s = ratings[start].time_s
        start = index


def speed_for(all_sessions: Sequence[Session], *, active: int, events_per_s: float) -> float:
    """Return by how much gaps must shrink for `active` overlaid sessions to make `events_per_s` on average."""
    gaps_s = sum(block.gap_s for session in all_sessions for block in session.blocks) + GAP_CAP_S * len(all_sessions)
    events = sum(len(block.ratings) for session in all_sessions for block in session.blocks)
    return max(1.0, gaps_s / active * events_per_s / events)
