"""What recall needs beside embeddings: the popular items of a window and, per item, the items that the same users chose. Pure reducers.

Shared by the stream app and the batch trainer. Like item states these are partial aggregates, one per source partition and one from
the base; the reader adds them up. Knows nothing about Redis (its keys are in services.common.ranker.feature_records).
"""

from __future__ import annotations

import heapq
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from services.common.platform.errors import CorruptArtifact
from services.common.ranker.half_lives import window_events

_HEAD = struct.Struct("<H")
_COUNT = struct.Struct("<f")
_DECAYED = struct.Struct("<ddd")
_DECAYED_OF_BEFORE = struct.Struct("<dd")

Counted = tuple[str, float]

# An item is a neighbour of the user's latest items; each co-occurrence changes two lists of at most this many.
CO_OCCURRENCE_DEPTH = 5
MAX_NEIGHBOURS = 50
MAX_POPULAR = 200


def pack_counts(counts: Iterable[Counted]) -> bytes:
    """Pack (item id, count) pairs, order kept; counts are rounded to float32."""
    parts: list[bytes] = []
    for item_id, count in counts:
        raw = item_id.encode()
        parts += (_HEAD.pack(len(raw)), raw, _COUNT.pack(count))
    return b"".join(parts)


def unpack_counts(data: bytes) -> list[Counted]:
    """Invert `pack_counts`.

    Raises:
        CorruptArtifact: the bytes are cut short, an id is not UTF-8, or a count is none.
    """
    counts = []
    at = 0
    try:
        while at < len(data):
            (length,) = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            item_id = data[at : at + length].decode()
            at += length
            (count,) = _COUNT.unpack_from(data, at)
            at += _COUNT.size
            if not 0 <= count < math.inf:
                raise CorruptArtifact(f"counted items: {item_id!r} is counted {count} times")
            counts.append((item_id, count))
    except struct.error as error:
        raise CorruptArtifact(f"counted items: {len(data)} bytes are cut short") from error
    except UnicodeDecodeError as error:
        raise CorruptArtifact(f"counted items: an id is not UTF-8 ({error})") from error
    return counts


def pack_popular(half_life_events: float, counts: Iterable[Counted]) -> bytes:
    """Pack the popular items of a partial with the half-life of their counts, which stands in front under the id that no item has: ""."""
    return pack_counts([("", half_life_events), *counts])


def unpack_popular(data: bytes, half_life_events: float, clock: float, *, unsaid: float | None = None) -> list[Counted]:
    """Invert `pack_popular`, as counts under the half-life `half_life_events`.

    Args:
        data: the bytes.
        half_life_events: of the present feature spec.
        clock: GlobalState.clock of the same partial: the counts are as of then.
        unsaid: half-life of a list of before, which does not say it; None: the present one.
    Raises:
        CorruptArtifact: as `unpack_counts`, or the half-life that is said is 0.
    """
    counts = unpack_counts(data)
    is_said = bool(counts) and counts[0][0] == ""
    if is_said and counts[0][1] == 0:
        raise CorruptArtifact("popular items: the half-life of their counts is 0")
    before = counts[0][1] if is_said else float(np.float32(half_life_events if unsaid is None else unsaid))
    share = _share(before, float(np.float32(half_life_events)), clock)
    return [(item_id, count * share) for item_id, count in counts[is_said:]]


def _share(before: float, after: float, clock: float) -> float:
    """Return what a count under the half-life `before` is to be multiplied with, its acts having come evenly."""
    old = window_events(before, clock) if before != after else 0.0
    return window_events(after, clock) / old if old > 0.0 else 1.0


def pack_ids(item_ids: Iterable[str]) -> bytes:
    """Pack item ids (a user's seen set, in an artifact)."""
    return pack_counts((item_id, 0.0) for item_id in item_ids)


def unpack_ids(data: bytes) -> list[str]:
    """Invert `pack_ids`."""
    return [item_id for item_id, _ in unpack_counts(data)]


def add_up(lists: Iterable[Sequence[Counted]], limit: int) -> list[Counted]:
    """Merge partial lists: counts of the same item are added; the `limit` largest come back, largest first, ties by item id."""
    total: dict[str, float] = {}
    for counts in lists:
        for item_id, count in counts:
            total[item_id] = total.get(item_id, 0.0) + count
    return largest(total, limit)


def largest(counts: Mapping[str, float], limit: int) -> list[Counted]:
    """Return the `limit` largest (item id, count) pairs, largest first, ties by item id."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]


class Popularity:
    """Decayed counts of all items that one partition has seen; the clock is that partition's GlobalState.clock.

    All counts decay alike, so who leads changes only by an act: log2(count) + clock / half-life, taken when the count was brought up to
    date, orders the items at any later moment, and an act raises it. So the leaders are kept from act to act, and asking for them costs
    the same whether the catalogue has a thousand items or a million.

    Attributes:
        half_life_events: after so many events of the whole stream an act counts half.
        counts: item id to (count, clock at which it was brought up to date); only `add` changes it.
    """

    def __init__(
        self, half_life_events: float, counts: Mapping[str, tuple[float, float]] | None = None, *, max_leaders: int = MAX_POPULAR
    ) -> None:
        """Go on from `counts`; keep the `max_leaders` most popular."""
        self.half_life_events = half_life_events
        self.counts = dict(counts or {})
        self._max_leaders = max_leaders
        # Item id to its standing. The last leader has the smallest (standing, then the largest id).
        self._leaders: dict[str, float] = {}
        self._last: tuple[float, str] | None = None
        ranked = heapq.nsmallest(max_leaders, ((-self._standing(item_id), item_id) for item_id in self.counts))
        self._leaders = {item_id: -negative for negative, item_id in ranked}
        self._find_last()

    def add(self, item_id: str, clock: float) -> None:
        """Count one act at `clock`, which never goes back."""
        count, then = self.counts.get(item_id, (0.0, clock))
        self.counts[item_id] = (count * math.exp2(-max(0.0, clock - then) / self.half_life_events) + 1.0, clock)
        standing = self._standing(item_id)
        if item_id in self._leaders:
            self._leaders[item_id] = standing
            if self._last is not None and item_id == self._last[1]:
                self._find_last()
        elif len(self._leaders) < self._max_leaders:
            self._leaders[item_id] = standing
            self._find_last()
        elif self._last is not None and (-standing, item_id) < (-self._last[0], self._last[1]):
            del self._leaders[self._last[1]]
            self._leaders[item_id] = standing
            self._find_last()

    def top(self, clock: float, limit: int) -> list[Counted]:
        """Return the `limit` items, at most `max_leaders`, with the largest counts as of `clock`."""
        now = {}
        for item_id in self._leaders:
            count, then = self.counts[item_id]
            now[item_id] = count * math.exp2(-max(0.0, clock - then) / self.half_life_events)
        return largest(now, min(limit, self._max_leaders))

    def _standing(self, item_id: str) -> float:
        count, then = self.counts[item_id]
        return math.log2(count) + then / self.half_life_events

    def _find_last(self) -> None:
        # While there is room for more, nobody needs to be the last.
        if len(self._leaders) == self._max_leaders:
            negative, item_id = max((-standing, item_id) for item_id, standing in self._leaders.items())
            self._last = (-negative, item_id)


def pack_decayed(count: float, clock: float, half_life_events: float) -> bytes:
    """Pack one of `Popularity.counts` with its half-life."""
    return _DECAYED.pack(count, clock, half_life_events)


def unpack_decayed(data: bytes, half_life_events: float) -> tuple[float, float]:
    """Invert `pack_decayed`; return (count, clock) under the half-life `half_life_events`. Counts of before are taken to have this one.

    Raises:
        CorruptArtifact: the bytes are no such count.
    """
    if len(data) not in (_DECAYED.size, _DECAYED_OF_BEFORE.size):
        raise CorruptArtifact(f"popularity: {len(data)} bytes are no count")
    count, clock, before = _DECAYED.unpack(data) if len(data) == _DECAYED.size else (*_DECAYED_OF_BEFORE.unpack(data), half_life_events)
    is_sound = 0 < count < math.inf and 0 <= clock < math.inf and 0 < before < math.inf
    present = count * _share(before, half_life_events, clock) if is_sound else 0.0
    if not 0 < present < math.inf:
        raise CorruptArtifact(f"popularity: {count} at {clock} with half-life {before} is no count")
    return present, clock


@dataclass(slots=True)
class Neighbours:
    """Items that the same users chose near one item, with counts; bounded: a new neighbour replaces the smallest and inherits its count.

    Source: Metwally et al. 2005, Space-Saving.
    """

    limit: int
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, item_id: str, weight: float = 1.0) -> None:
        """Count one co-occurrence with `item_id`."""
        if item_id not in self.counts and len(self.counts) >= self.limit:
            smallest = min(self.counts, key=lambda name: (self.counts[name], name))
            weight += self.counts.pop(smallest)
        self.counts[item_id] = self.counts.get(item_id, 0.0) + weight

    def to_bytes(self) -> bytes:
        """Pack, largest first."""
        return pack_counts(largest(self.counts, self.limit))

    @classmethod
    def from_bytes(cls, data: bytes, limit: int) -> Neighbours:
        """Unpack; see `unpack_counts`."""
        return cls(limit, dict(unpack_counts(data)[:limit]))
