"""The online states that feedback updates: of a user, an item and the whole stream; how they are packed, and how partials are merged.

One pure implementation for the stream app, the batch trainer and the recommender. Every reducer is idempotent by source offset and every
decay counts events, never wall time. Knows nothing about Redis, Kafka, or which features are made of the states.

Item and global states are PARTIAL aggregates: one per source partition and one from the base, so that no two workers write one key
(services.common.ranker.feature_records names them). A packed item state says under which half-lives it was made; under others it is read as
services.common.ranker.half_lives translates it. Shapes: N items, H half-lives, P partials, K numbers of a packed item state,
M of an item's sums.
"""

from __future__ import annotations

import heapq
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from services.common.platform.errors import CorruptArtifact
from services.common.ranker.declared.plan import NONE, Attributes
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.half_lives import MAX_HALF_LIVES, under_other_half_lives
from services.common.ranker.packing import F64, I64, U16, Cursor, check_packable, pack_tallies, pack_text
from services.common.ranker.tallies import EMPTY_TALLY, NEUTRAL_VALUE, Float64Array, ItemMatrix, Tally

NO_OFFSET = -1
NO_TIME = -1

# Categories that GlobalState counts: it is written with every batch of acts and read with every request. When there are so many and a
# quarter more, the rarest go, down to this number.
MAX_CATEGORIES = 4_096


@dataclass(frozen=True, slots=True)
class Interaction:
    """One piece of feedback, as the reducers see it."""

    user_id: str
    item_id: str
    kind: str
    value: float
    time_ms: int
    context: Attributes = field(default_factory=lambda: NONE, hash=False)
    """Of the request that showed the item, where a recorded history says it; no reducer looks at it."""
    position: int = 0
    """Where the item stood in what was shown, 1: first, where a recorded history says it; 0: unknown."""


class HistoryEntry(NamedTuple):
    """One item of a user's history; value is on the 0..1 scale, NEUTRAL_VALUE for acts without an opinion."""

    item_id: str
    value: float
    time_ms: int = NO_TIME
    """When it was, Unix milliseconds; NO_TIME under a spec that does not ask how long ago an event happened."""


_USER_HEAD = struct.Struct("<qdddd")
_GLOBAL_HEAD = struct.Struct("<qHddd")


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
        time_ms = max(NO_TIME, interaction.time_ms) if spec.plan.reads_ages else NO_TIME
        self.history.insert(0, HistoryEntry(interaction.item_id, NEUTRAL_VALUE if value is None else value, time_ms))
        del self.history[spec.history.length :]
        for category in item_categories:
            self.categories[category] = self.categories.get(category, EMPTY_TALLY).plus(value)
        while len(self.categories) > spec.counters.max_user_categories:
            del self.categories[min(self.categories, key=lambda name: (self.categories[name].acts, name))]
        return True

    def to_bytes(self) -> bytes:
        """Pack; `from_bytes` restores an equal state."""
        parts = [_USER_HEAD.pack(self.last_offset, *self.tally, self.value_sq_sum), U16.pack(len(self.history))]
        for entry in self.history:
            parts += (pack_text(entry.item_id), F64.pack(entry.value))
        parts.append(pack_tallies(self.categories))
        # States of a spec that asks for no times are the bytes that they always were.
        if any(entry.time_ms != NO_TIME for entry in self.history):
            parts += (I64.pack(entry.time_ms) for entry in self.history)
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, spec: FeatureSpec, data: bytes) -> UserState:
        """Unpack.

        Raises:
            CorruptArtifact: the bytes are not a UserState.
        """
        cursor = Cursor(data, "user state")
        offset, count, rated, value_sum, value_sq_sum = cursor.take(_USER_HEAD)
        history = [HistoryEntry(item_id, value) for item_id, (value,) in cursor.texts_with(F64)]
        categories = cursor.tallies()
        if not cursor.is_at_end:
            history = [entry._replace(time_ms=int(cursor.take(I64)[0])) for entry in history]
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
        return head + pack_tallies(self.kinds) + pack_tallies(self.categories)

    @classmethod
    def from_bytes(cls, data: bytes) -> GlobalState:
        """Unpack.

        Raises:
            CorruptArtifact: the bytes are not a GlobalState.
        """
        cursor = Cursor(data, "global state")
        offset, partitions, count, rated, value_sum = cursor.take(_GLOBAL_HEAD)
        kinds, categories = cursor.tallies(), cursor.tallies()
        cursor.end()
        return cls(int(partitions), int(offset), Tally(count, rated, value_sum), kinds, categories)


# The first number of a packed item state, before its half-lives. States of before began with their offset, which is never below -1, and did
# not say under which half-lives they were made.
_ITEM_FORMAT = -2


@lru_cache(maxsize=8)
def _item_struct(num_half_lives: int) -> struct.Struct:
    return struct.Struct(f"<q{num_half_lives}dq{5 + 3 * num_half_lives}d")


@lru_cache(maxsize=8)
def _item_struct_of_before(num_half_lives: int) -> struct.Struct:
    return struct.Struct(f"<q{5 + 3 * num_half_lives}d")


@lru_cache(maxsize=8)
def _item_head(half_lives_events: tuple[float, ...]) -> bytes:
    return struct.pack(f"<q{len(half_lives_events)}d", _ITEM_FORMAT, *half_lives_events)


def _item_numbers(data: bytes) -> tuple[tuple[float, ...] | None, int, tuple[float, ...]]:
    """Return the half-lives (None: it does not say), the offset and the other numbers of a packed item state.

    Raises:
        CorruptArtifact: the bytes are no item state.
    """
    words, rest = divmod(len(data), 8)
    is_marked = words > 0 and int.from_bytes(data[:8], "little", signed=True) == _ITEM_FORMAT
    num_half_lives, odd = divmod(words - 7, 4) if is_marked else divmod(words - 6, 3)
    if rest or odd or not 1 <= num_half_lives <= MAX_HALF_LIVES:
        raise CorruptArtifact(f"item state: {len(data)} bytes are no item state")
    half_lives: tuple[float, ...] | None = None
    if is_marked:
        numbers = _item_struct(num_half_lives).unpack(data)[1:]
        half_lives, numbers = numbers[:num_half_lives], numbers[num_half_lives:]
        if not all(0 < one < math.inf for one in half_lives) or list(half_lives) != sorted(set(half_lives)):
            raise CorruptArtifact(f"item state: half-lives {half_lives} are not positive and rising")
    else:
        numbers = _item_struct_of_before(num_half_lives).unpack(data)
    if not all(0 <= number < math.inf for number in numbers[1:]):
        raise CorruptArtifact("item state: a count is negative, infinite or no number")
    return half_lives, int(numbers[0]), numbers[1:]


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
        half_lives = spec.counters.half_lives_events
        decayed = self.decayed or [EMPTY_TALLY] * len(half_lives)
        flat = [number for tally in decayed for number in tally]
        return _item_struct(len(half_lives)).pack(
            _ITEM_FORMAT, *half_lives, self.last_offset, self.clock, *self.tally, self.value_sq_sum, *flat
        )

    @classmethod
    def from_bytes(cls, spec: FeatureSpec, data: bytes, *, unsaid: Sequence[float] | None = None) -> ItemState:
        """Unpack, as a state under the spec's half-lives, whatever half-lives it was made under.

        Args:
            spec: the present one.
            data: the bytes.
            unsaid: half-lives of a state of before, which does not say them; None: the spec's, if they are as many, else unknown.
        Raises:
            CorruptArtifact: the bytes are not an ItemState.
        """
        present = spec.counters.half_lives_events
        said, offset, (clock, count, rated, value_sum, value_sq_sum, *flat) = _item_numbers(data)
        tally, decayed = Tally(count, rated, value_sum), [Tally(*flat[at : at + 3]) for at in range(0, len(flat), 3)]
        half_lives = said or tuple(unsaid or present)
        if len(half_lives) != len(decayed):
            half_lives, decayed = (), []
        if half_lives != present:
            decayed = under_other_half_lives(tally, decayed, half_lives, present, clock)
        return cls(offset, clock, tally, value_sq_sum, decayed)


def item_state_bytes(spec: FeatureSpec) -> int:
    """Return the size of a packed ItemState."""
    return _item_struct(len(spec.counters.half_lives_events)).size


def item_state_head(spec: FeatureSpec) -> bytes:
    """Return what a packed ItemState under the spec's half-lives begins with."""
    return _item_head(spec.counters.half_lives_events)


def present_item_bytes(spec: FeatureSpec, data: bytes, *, unsaid: Sequence[float] | None = None) -> bytes:
    """Return a packed ItemState as `to_bytes` under `spec` writes it: the very bytes when it was made under its half-lives.

    The numbers of such a state are not looked at. Arguments and errors as in `ItemState.from_bytes`.
    """
    if len(data) == item_state_bytes(spec) and data.startswith(_item_head(spec.counters.half_lives_events)):
        return data
    return ItemState.from_bytes(spec, data, unsaid=unsaid).to_bytes(spec)


def are_counts(spec: FeatureSpec, present: Sequence[bytes]) -> bool:
    """Whether all numbers of item states, as `present_item_bytes` returns them, can be counts: finite and not negative."""
    table = np.frombuffer(b"".join(present), dtype="<f8").reshape(len(present), -1)[:, len(spec.counters.half_lives_events) + 2 :]
    return bool(np.all((table >= 0) & (table < np.inf)))


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
    return 4 + 3 * len(spec.counters.half_lives_events)


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
        CorruptArtifact: one of them is no ItemState.
    """
    size = item_state_bytes(spec)
    num_items = len(partials_PN[0]) if partials_PN else 0
    missing = bytes(size)
    head = _item_head(spec.counters.half_lives_events)
    blob = b"".join(
        [
            missing if state is None else state if len(state) == size and state.startswith(head) else present_item_bytes(spec, state)
            for states in partials_PN
            for state in states
        ]
    )
    table_PNK = np.frombuffer(blob, dtype="<f8").reshape(len(partials_PN), num_items, size // 8)[:, :, len(head) // 8 :]
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
