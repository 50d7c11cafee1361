"""What the demo replays: users' sessions, block by block, with their gaps. Pure; knows nothing of the mesh.

A block is what one user rated within one second of the original data. All of a block is scored before any of it is
reported, since most ratings of MovieLens share their second with another.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

GAP_CAP_S = 20.0
NUM_CANDIDATES = 100


@dataclass(frozen=True, slots=True)
class Rating:
    """One rating of the original data; `time_s` is Unix seconds."""

    user_id: str
    item_id: str
    stars: float
    time_s: int


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


def split_by_time(ratings: Iterable[Rating], base_fraction: float) -> tuple[list[Rating], list[Rating]]:
    """Return (base, live): the first `base_fraction` of the ratings by time, and the rest."""
    ordered = sorted(ratings, key=lambda r: r.time_s)
    cut = int(len(ordered) * base_fraction)
    return ordered[:cut], ordered[cut:]


def sessions(live: Sequence[Rating], *, seed: int) -> list[Session]:
    """Group live ratings into one session per user; users come in a seeded random order."""
    by_user: dict[str, list[Rating]] = {}
    for rating in live:
        by_user.setdefault(rating.user_id, []).append(rating)
    users = sorted(by_user)
    random.Random(seed).shuffle(users)
    return [Session(user, tuple(_blocks(by_user[user]))) for user in users]


def _blocks(ratings: Sequence[Rating]) -> Iterator[Block]:
    ordered = sorted(ratings, key=lambda r: r.time_s)
    start, previous_time = 0, ordered[0].time_s
    for index in range(1, len(ordered) + 1):
        if index < len(ordered) and ordered[index].time_s == ordered[start].time_s:
            continue
        gap = min(float(ordered[start].time_s - previous_time), GAP_CAP_S)
        yield Block(gap, tuple(ordered[start:index]))
        previous_time = ordered[start].time_s
        start = index


def speed_for(all_sessions: Sequence[Session], *, active: int, events_per_s: float) -> float:
    """Return by how much gaps must shrink for `active` overlaid sessions to make `events_per_s` on average."""
    gaps = sum(block.gap_s for session in all_sessions for block in session.blocks)
    events = sum(len(block.ratings) for session in all_sessions for block in session.blocks)
    return max(1.0, gaps / active * events_per_s / events)


class CandidateSampler:
    """Draws the 99 other films of an event: films that the user has not rated *yet*, later ones included.

    Drawing only from films that the user never rates would leak the future to a learner that remembers what it was
    shown in vain.
    """

    def __init__(self, catalogue: Sequence[str], base: Iterable[Rating], *, seed: int) -> None:
        """Start from what each user rated before the live part."""
        self._catalogue = list(catalogue)
        self._seed = seed
        self._rated: dict[str, set[str]] = {}
        for rating in base:
            self.mark_rated(rating.user_id, rating.item_id)

    def mark_rated(self, user_id: str, item_id: str) -> None:
        """From now on this user's draws leave out this item."""
        self._rated.setdefault(user_id, set()).add(item_id)

    def has_rated(self, user_id: str, item_id: str) -> bool:
        """Return whether the user has rated the item so far."""
        return item_id in self._rated.get(user_id, ())

    def draw(self, rating: Rating) -> list[str]:
        """Return the rated item and 99 others in a shuffled order, the same for the same seed, event and past."""
        rng = random.Random(f"{self._seed}/{rating.user_id}/{rating.item_id}")
        excluded = self._rated.get(rating.user_id, set())
        chosen = {rating.item_id}
        others: list[str] = []
        while len(others) < NUM_CANDIDATES - 1:
            item = self._catalogue[rng.randrange(len(self._catalogue))]
            if item not in chosen and item not in excluded:
                chosen.add(item)
                others.append(item)
        others.insert(rng.randrange(NUM_CANDIDATES), rating.item_id)
        return others


class OnlineBaselines:
    """Counters without a lag: smoothed item and user means (for like), number of ratings so far (for interact)."""

    _SMOOTHING = 5.0

    def __init__(self, base: Iterable[Rating]) -> None:
        """Start from the base part."""
        self._items: dict[str, tuple[int, float]] = {}
        self._users: dict[str, tuple[int, float]] = {}
        self._count, self._sum = 0, 0.0
        for rating in base:
            self.add(rating)

    def add(self, rating: Rating) -> None:
        """Count one rating."""
        for counters, key in ((self._items, rating.item_id), (self._users, rating.user_id)):
            count, total = counters.get(key, (0, 0.0))
            counters[key] = (count + 1, total + rating.stars)
        self._count += 1
        self._sum += rating.stars

    def mean_score(self, user_id: str, item_id: str) -> float:
        """Return the sum of the smoothed item mean and the smoothed user mean, in stars."""
        overall = self._sum / max(1, self._count)
        return sum(
            (total + self._SMOOTHING * overall) / (count + self._SMOOTHING)
            for count, total in (self._items.get(item_id, (0, 0.0)), self._users.get(user_id, (0, 0.0)))
        )

    def popularity(self, item_id: str) -> float:
        """Return how often the item has been rated so far."""
        return float(self._items.get(item_id, (0, 0.0))[0])
