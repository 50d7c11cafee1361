"""The online states that feedback updates: of a user, an item and the whole stream; how they are packed, and how partials are merged.

One pure implementation for the stream app, the batch trainer and the recommender. Every reducer is idempotent by source offset and every
decay counts events, never wall time. Knows nothing about Redis, Kafka, or which features are made of the states.

Item and global states are PARTIAL aggregates: one per source partition and one from the base, so that no two workers write one key
(services.common.ranker.feature_records names them). Shapes: N items, H half-lives, P partials, K numbers of a packed item state,
M = K - 2 of an item's sums.
"""

from __future__ import annotations

import heapq
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from services.common.platform.errors import CorruptArtifact, InvalidInput
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.tallies import EMPTY_TALLY, NEUTRAL_VALUE, Float64Array, ItemMatrix, Tally

NO_OFFSET = -1

# Categories that GlobalState counts: it is written with every batch of acts and read with every request. When there are so many and a
# quarter more, the rarest go, down to this number.
MAX_CATEGORIES = 4_096
_LONGEST_TEXT = 0xFFFF


@dataclass(frozen=True, slots=True)
class Interaction:
    """One piece of feedback, as the reducers see it."""

    user_id: str
    item_id: str
    kind: str
    value: float
    time_ms: int


class HistoryEntry(NamedTuple):
    """One item of a user's history; value is on the 0..1 scale, NEUTRAL_VALUE for acts without an opinion."""

    item_id: str
    value: float


_U16 = struct.Struct("<H")
_F64 = struct.Struct("<d")
_TALLY = struct.Struct("<ddd")
_USER_HEAD = struct.Struct("<qdddd")
_GLOBAL_HEAD = struct.Struct("<qHddd")


def check_packable(*texts: str) -> None:
    """Refuse what no state could be written with. Doors have tighter bounds (services.common.events.limits): this one is the last.

    Raises:
        InvalidInput: a text has more than 65,535 bytes.
    """
    for text in texts:
        if len(text) * 4 > _LONGEST_TEXT and len(text.encode()) > _LONGEST_TEXT:
            size = len(text.encode())
            raise InvalidInput(f"{text[:40]!r}…: it has {size} bytes; an id or category in a state has at most {_LONGEST_TEXT}")


def _pack_text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<H", len(raw)) + raw


def _pack_tallies(tallies: Mapping[str, Tally]) -> bytes:
    parts = [struct.pack("<H", len(tallies))]
    for name, tally in tallies.items():
        parts += (_pack_text(name), _TALLY.pack(*tally))
    return b"".join(parts)


class _Cursor:
    """Reads packed fields one after another; running past the end means a damaged state."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._at = 0
        self._what = what

    def take(self, packed: struct.Struct) -> tuple[float, ...]:
        try:
            values = packed.unpack_from(self._data, self._at)
        except struct.error as error:
            raise CorruptArtifact(f"{self._what}: {len(self._data)} bytes are too few ({error})") from error
        self._at += packed.size
        return values

    def texts_with(self, packed: struct.Struct) -> list[tuple[str, tuple[float, ...]]]:
        """Read a number of (text, values) and those; in one loop over local names, since a user has some forty of them."""
        number = int(self.take(_U16)[0])
        data, at, size = self._data, self._at, packed.size
        found = []
        try:
            for _ in range(number):
                text_at = at + 2
                at = text_at + (data[at] | data[at + 1] << 8) + size
                found.append((data[text_at : at - size].decode(), packed.unpack_from(data, at - size)))
        except (struct.error, IndexError) as error:
            raise CorruptArtifact(f"{self._what}: {len(data)} bytes are too few ({error})") from error
        except UnicodeDecodeError as error:
            raise CorruptArtifact(f"{self._what}: a text is not UTF-8 ({error})") from error
        self._at = at
        return found

    def tallies(self) -> dict[str, Tally]:
        return {name: Tally._make(values) for name, values in self.texts_with(_TALLY)}

    def end(self) -> None:
        if self._at != len(self._data):
            raise CorruptArtifact(f"{self._what}: {len(self._data) - self._at} bytes too many")


@dataclass(slots=True)
class UserState:
    """What is known about one user. Written by the one partition that owns the user."""

    last_offset: int = NO_OFFSET
    tally: Tally = EMPTY_TALLY
    value_sq_sum: float = 0.0
    history: list[HistoryEntry] = field(default_factory=list)
    """Newest first, at most spec.history.length."""
    categories: dict[str, Tally] = field(default_factory=dict)

    def apply(self, spec: FeatureSpec, interaction: Interaction, item_categories: Sequence[str], source_offset: int) -> bool:
        """Take one interaction in; return False, changing nothing, when its offset was already taken in.

        Raises:
            InvalidInput: from `check_packable`; nothing is changed.
        """
        if source_offset != NO_OFFSET and source_offset <= self.last_offset:
            return False
        check_packable(interaction.item_id, *item_categories)
        self.last_offset = max(self.last_offset, source_offset)
        value = spec.normalised(interaction.kind, interaction.value)
        self.tally = self.tally.plus(value)
        if value is not None:
            self.value_sq_sum += value * value
        self.history.insert(0, HistoryEntry(interaction.item_id, NEUTRAL_VALUE if value is None else value))
        del self.history[spec.history.length :]
        for category in item_categories:
            self.categories[category] = self.categories.get(category, EMPTY_TALLY).plus(value)
        while len(self.categories) > spec.counters.max_user_categories:
            del self.categories[min(self.categories, key=lambda name: (self.categories[name].acts, name))]
        return True

    def to_bytes(self) -> bytes:
        """Pack; `from_bytes` restores an equal state."""
        parts = [_USER_HEAD.pack(self.last_offset, *self.tally, self.value_sq_sum), _U16.pack(len(self.history))]
        for entry in self.history:
            parts += (_pack_text(entry.item_id), _F64.pack(entry.value))
        parts.append(_pack_tallies(self.categories))
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, spec: FeatureSpec, data: bytes) -> UserState:
        """Unpack.

        Raises:
            CorruptArtifact: the bytes are not a UserState.
        """
        cursor = _Cursor(data, "user state")
        offset, count, rated, value_sum, value_sq_sum = cursor.take(_USER_HEAD)
        history = [HistoryEntry(item_id, value) for item_id, (value,) in cursor.texts_with(_F64)]
        categories = cursor.tallies()
        cursor.end()
        return cls(int(offset), Tally(count, rated, value_sum), value_sq_sum, history[: spec.history.length], categories)


@dataclass(slots=True)
class GlobalState:
    """What is known about the whole stream, as far as one partition has seen it."""

    partitions: int = 1
    """Partitions among which the stream is split: the clock of this partial advances by that much per event."""
    last_offset: int = NO_OFFSET
    tally: Tally = EMPTY_TALLY
    kinds: dict[str, Tally] = field(default_factory=dict)
    categories: dict[str, Tally] = field(default_factory=dict)
    """The most frequent ones, at most a quarter more than MAX_CATEGORIES."""

    @property
    def clock(self) -> float:
        """Estimate of the events of the whole stream so far, from this partition's share."""
        return self.tally.acts * self.partitions

    def apply(self, spec: FeatureSpec, interaction: Interaction, item_categories: Sequence[str], source_offset: int) -> bool:
        """Take one interaction in; return False, changing nothing, when its offset was already taken in.

        Raises:
            InvalidInput: from `check_packable`; nothing is changed.
        """
        if source_offset != NO_OFFSET and source_offset <= self.last_offset:
            return False
        check_packable(interaction.kind, *item_categories)
        self.last_offset = max(self.last_offset, source_offset)
        value = spec.normalised(interaction.kind, interaction.value)
        self.tally = self.tally.plus(value)
        self.kinds[interaction.kind] = self.kinds.get(interaction.kind, EMPTY_TALLY).plus(value)
        for category in item_categories:
            self.categories[category] = self.categories.get(category, EMPTY_TALLY).plus(value)
        if len(self.categories) > MAX_CATEGORIES * 5 // 4:
            self.categories = dict(heapq.nsmallest(MAX_CATEGORIES, self.categories.items(), key=lambda pair: (-pair[1].acts, pair[0])))
        return True

    def to_bytes(self) -> bytes:
        """Pack; `from_bytes` restores an equal state."""
        head = _GLOBAL_HEAD.pack(self.last_offset, self.partitions, *self.tally)
        return head + _pack_tallies(self.kinds) + _pack_tallies(self.categories)

    @classmethod
    def from_bytes(cls, data: bytes) -> GlobalState:
        """Unpack.

        Raises:
            CorruptArtifact: the bytes are not a GlobalState.
        """
        cursor = _Cursor(data, "global state")
        offset, partitions, count, rated, value_sum = cursor.take(_GLOBAL_HEAD)
        kinds, categories = cursor.tallies(), cursor.tallies()
        cursor.end()
        return cls(int(partitions), int(offset), Tally(count, rated, value_sum), kinds, categories)


@lru_cache(maxsize=8)
def _item_struct(num_half_lives: int) -> struct.Struct:
    return struct.Struct(f"<q{5 + 3 * num_half_lives}d")


@dataclass(slots=True)
class ItemState:
    """What one partition has seen of one item. Fixed size, so that a hundred of them are merged as one array."""

    last_offset: int = NO_OFFSET
    clock: float = 0.0
    """GlobalState.clock of the same partition when the decayed counters were last brought up to date."""
    tally: Tally = EMPTY_TALLY
    value_sq_sum: float = 0.0
    decayed: list[Tally] = field(default_factory=list)
    """One per half-life; empty means zeros."""

    def apply(self, spec: FeatureSpec, interaction: Interaction, clock: float, source_offset: int) -> bool:
        """Take one interaction in at `clock` (the partition's GlobalState.clock, this event included).

        Returns False, changing nothing, when its offset was already taken in.
        """
        if source_offset != NO_OFFSET and source_offset <= self.last_offset:
            return False
        self.last_offset = max(self.last_offset, source_offset)
        value = spec.normalised(interaction.kind, interaction.value)
        self.tally = self.tally.plus(value)
        if value is not None:
            self.value_sq_sum += value * value
        elapsed = max(0.0, clock - self.clock)
        before = self.decayed or [EMPTY_TALLY] * len(spec.counters.half_lives_events)
        self.decayed = []
        for tally, half_life in zip(before, spec.counters.half_lives_events, strict=True):
            keep = math.exp2(-elapsed / half_life)
            self.decayed.append(Tally(tally.acts * keep, tally.rated * keep, tally.value_sum * keep).plus(value))
        self.clock = clock
        return True

    def to_bytes(self, spec: FeatureSpec) -> bytes:
        """Pack into `item_state_bytes(spec)` bytes; `from_bytes` restores an equal state."""
        num_half_lives = len(spec.counters.half_lives_events)
        decayed = self.decayed or [EMPTY_TALLY] * num_half_lives
        flat = [number for tally in decayed for number in tally]
        return _item_struct(num_half_lives).pack(self.last_offset, self.clock, *self.tally, self.value_sq_sum, *flat)

    @classmethod
    def from_bytes(cls, spec: FeatureSpec, data: bytes) -> ItemState:
        """Unpack.

        Raises:
            CorruptArtifact: the bytes are not an ItemState of this spec.
        """
        packed = _item_struct(len(spec.counters.half_lives_events))
        if len(data) != packed.size:
            raise CorruptArtifact(f"item state: {len(data)} bytes, want {packed.size} (written under another feature spec?)")
        offset, clock, count, rated, value_sum, value_sq_sum, *flat = packed.unpack(data)
        decayed = [Tally(*flat[at : at + 3]) for at in range(0, len(flat), 3)]
        return cls(offset, clock, Tally(count, rated, value_sum), value_sq_sum, decayed)


def item_state_bytes(spec: FeatureSpec) -> int:
    """Return the size of a packed ItemState."""
    return _item_struct(len(spec.counters.half_lives_events)).size


def merge_globals(partials: Iterable[GlobalState | None]) -> GlobalState:
    """Return the sum of the partials; absent ones count nothing. Its clock is the number of events of the whole stream."""
    total = GlobalState()
    for partial in partials:
        if partial is None:
            continue
        total.tally = total.tally.add(partial.tally)
        for name, tally in partial.kinds.items():
            total.kinds[name] = total.kinds.get(name, EMPTY_TALLY).add(tally)
        for name, tally in partial.categories.items():
            total.categories[name] = total.categories.get(name, EMPTY_TALLY).add(tally)
    return total


def num_item_sums(spec: FeatureSpec) -> int:
    """Return M, how many numbers `item_sums` has of an item."""
    return item_state_bytes(spec) // 8 - 2


def merge_item_bytes(
    spec: FeatureSpec, partials_PN: Sequence[Sequence[bytes | None]], globals_P: Sequence[GlobalState | None]
) -> ItemMatrix:
    """Return `item_sums` as columns; raises what it raises."""
    return ItemMatrix.of_sums(item_sums(spec, partials_PN, globals_P))


def item_sums(spec: FeatureSpec, partials_PN: Sequence[Sequence[bytes | None]], globals_P: Sequence[GlobalState | None]) -> Float64Array:
    """Merge packed ItemStates: return float64 [N, M], each item's sums over its partials, decayed counters brought up to the present.

    Args:
        partials_PN: for every partial (base first, then partitions: `partial_names`) the packed states of the N items, None where absent.
        globals_P: the GlobalStates of the same partials: their clocks say how much each partial has decayed since it was written.
    Raises:
        CorruptArtifact: a state is not of this spec.
    """
    size = item_state_bytes(spec)
    num_items = len(partials_PN[0]) if partials_PN else 0
    missing = bytes(size)
    blob = b"".join([missing if state is None else state for states in partials_PN for state in states])
    if len(blob) != size * num_items * len(partials_PN):
        raise CorruptArtifact(f"item state: not {size} bytes each (written under another feature spec?)")
    table_PNK = np.frombuffer(blob, dtype="<f8").reshape(len(partials_PN), num_items, size // 8)
    half_lives_H = np.asarray(spec.counters.half_lives_events)
    # The base's events are over: its clock goes on with everything that came after it.
    live_clock = sum(state.tally.acts for state in globals_P[1:] if state is not None)
    clocks = [0.0 if state is None else state.clock for state in globals_P]
    if clocks:
        clocks[0] += live_clock
    elapsed_PN = np.maximum(np.asarray(clocks)[:, None] - table_PNK[:, :, 1], 0.0)
    keep_PNH = np.exp2(-elapsed_PN[:, :, None] / half_lives_H)
    # What is summed over the partials lies side by side, so that it is added partial by partial, the base first, however many items there
    # are: an item's sums are the same bits whichever others it is merged with.
    sums_PNM = table_PNK[:, :, 2:].copy()
    sums_PNM[:, :, 4:].reshape(*keep_PNH.shape, 3)[...] *= keep_PNH[..., None]
    sums_NM: Float64Array = sums_PNM.reshape(len(partials_PN), -1).sum(axis=0).reshape(num_items, num_item_sums(spec))
    return sums_NM
