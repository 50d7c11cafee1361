"""What recall needs beside embeddings: the popular items of a window and, per item, the items that the same users chose. Pure reducers.

Shared by the stream app and the batch trainer. Like item states these are partial aggregates, one per source partition and one from
the base; the reader adds them up. Knows nothing about Redis (its keys are in services.common.ranker.feature_records).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.common.platform.errors import CorruptArtifact

_HEAD = struct.Struct("<H")
_COUNT = struct.Struct("<f")

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
        CorruptArtifact: the bytes are cut short.
    """
    counts = []
    at = 0
    try:
        while at < len(data):
            (length,) = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            item_id = data[at : at + length].decode()
            at += length
            counts.append((item_id, _COUNT.unpack_from(data, at)[0]))
            at += _COUNT.size
    except struct.error as error:
        raise CorruptArtifact(f"counted items: {len(data)} bytes are cut short") from error
    return counts


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


@dataclass(slots=True)
class Popularity:
    """Decayed counts of all items that one partition has seen; the clock is that partition's GlobalState.clock."""

    half_life_events: float
    counts: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Item id to (count, clock at which it was brought up to date)."""

    def add(self, item_id: str, clock: float) -> None:
        """Count one act at `clock`."""
        count, then = self.counts.get(item_id, (0.0, clock))
        self.counts[item_id] = (count * math.exp2(-max(0.0, clock - then) / self.half_life_events) + 1.0, clock)

    def top(self, clock: float, limit: int) -> list[Counted]:
        """Return the `limit` items with the largest counts as of `clock`."""
        now = {
            item_id: count * math.exp2(-max(0.0, clock - then) / self.half_life_events) for item_id, (count, then) in self.counts.items()
        }
        return largest(now, limit)


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
