"""Online features: the states that feedback updates, and the feature rows that are built from them at request time.

One pure implementation for the stream app, the batch trainer and the recommender. Every reducer is idempotent by source offset and every
decay counts events, never wall time. Knows nothing about Redis (but names its keys), Kafka or the network.

Item and global states are PARTIAL aggregates: one per source partition and one, "b", from the base, so that no two workers write one key.
Shapes: N items, H half-lives, L history length, U user features, F item features, P partials.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.common.platform.errors import CorruptArtifact
from services.common.platform.ids import entity_key
from services.common.ranker.feature_spec import FeatureSpec

BASE_PARTIAL = "b"
NO_OFFSET = -1
# A history value for acts that state no opinion: the middle of the 0..1 scale.
NEUTRAL_VALUE = 0.5
# Pseudo-counts that pull small samples towards their parent mean.
MEAN_PRIOR = 5.0
CATEGORY_PRIOR = 4.0

Float16Array = npt.NDArray[np.float16]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


def user_key(user_id: str) -> str:
    """Redis key of a UserState."""
    return f"tm:u:{user_id}"


def seen_key(user_id: str) -> str:
    """Redis key of the set of item ids that a user has acted on."""
    return f"tm:seen:{user_id}"


def item_key(item_id: str, partial: str) -> str:
    """Redis key of an ItemState; `partial` is BASE_PARTIAL or a partition number."""
    return f"tm:i:{item_id}:{partial}"


def global_key(partial: str) -> str:
    """Redis key of a GlobalState."""
    return f"tm:g:{partial}"


def popular_key(partial: str) -> str:
    """Redis key of the packed popularity list (services.common.ranker.recall_state)."""
    return f"tm:pop:{partial}"


def neighbours_key(item_id: str, partial: str) -> str:
    """Redis key of an item's packed neighbours (services.common.ranker.recall_state)."""
    return f"tm:i2i:{item_id}:{partial}"


def partial_names(num_partitions: int) -> list[str]:
    """Return the names of all partials in the order in which `merge_item_bytes` expects them: base first."""
    return [BASE_PARTIAL, *(str(partition) for partition in range(num_partitions))]


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


class Tally(NamedTuple):
    """Number of acts, how many of them stated an opinion, and the sum of those opinions (0..1 each)."""

    acts: float
    rated: float
    value_sum: float

    def plus(self, value: float | None) -> Tally:
        """Return this tally with one more act."""
        if value is None:
            return Tally(self.acts + 1, self.rated, self.value_sum)
        return Tally(self.acts + 1, self.rated + 1, self.value_sum + value)

    def add(self, other: Tally) -> Tally:
        """Return the sum of both."""
        return Tally(self.acts + other.acts, self.rated + other.rated, self.value_sum + other.value_sum)


_EMPTY_TALLY = Tally(0.0, 0.0, 0.0)
_U16 = struct.Struct("<H")
_F64 = struct.Struct("<d")
_TALLY = struct.Struct("<ddd")
_USER_HEAD = struct.Struct("<qdddd")
_GLOBAL_HEAD = struct.Struct("<qHddd")


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

    def text(self) -> str:
        length = int(self.take(_U16)[0])
        raw = self._data[self._at : self._at + length]
        if len(raw) < length:
            raise CorruptArtifact(f"{self._what}: text runs past the end")
        self._at += length
        return raw.decode()

    def tallies(self) -> dict[str, Tally]:
        return {self.text(): Tally(*self.take(_TALLY)) for _ in range(int(self.take(_U16)[0]))}

    def end(self) -> None:
        if self._at != len(self._data):
            raise CorruptArtifact(f"{self._what}: {len(self._data) - self._at} bytes too many")


@dataclass(slots=True)
class UserState:
    """What is known about one user. Written by the one partition that owns the user."""

    last_offset: int = NO_OFFSET
    tally: Tally = _EMPTY_TALLY
    value_sq_sum: float = 0.0
    history: list[HistoryEntry] = field(default_factory=list)
    """Newest first, at most spec.history.length."""
    categories: dict[str, Tally] = field(default_factory=dict)

    def apply(self, spec: FeatureSpec, interaction: Interaction, item_categories: Sequence[str], source_offset: int) -> bool:
        """Take one interaction in; return False, changing nothing, when its offset was already taken in."""
        if source_offset != NO_OFFSET and source_offset <= self.last_offset:
            return False
        self.last_offset = max(self.last_offset, source_offset)
        value = spec.normalised(interaction.kind, interaction.value)
        self.tally = self.tally.plus(value)
        if value is not None:
            self.value_sq_sum += value * value
        self.history.insert(0, HistoryEntry(interaction.item_id, NEUTRAL_VALUE if value is None else value))
        del self.history[spec.history.length :]
        for category in item_categories:
            self.categories[category] = self.categories.get(category, _EMPTY_TALLY).plus(value)
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
        history = [HistoryEntry(cursor.text(), cursor.take(_F64)[0]) for _ in range(int(cursor.take(_U16)[0]))]
        categories = cursor.tallies()
        cursor.end()
        return cls(int(offset), Tally(count, rated, value_sum), value_sq_sum, history[: spec.history.length], categories)


@dataclass(slots=True)
class GlobalState:
    """What is known about the whole stream, as far as one partition has seen it."""

    partitions: int = 1
    """Partitions among which the stream is split: the clock of this partial advances by that much per event."""
    last_offset: int = NO_OFFSET
    tally: Tally = _EMPTY_TALLY
    kinds: dict[str, Tally] = field(default_factory=dict)
    categories: dict[str, Tally] = field(default_factory=dict)

    @property
    def clock(self) -> float:
        """Estimate of the events of the whole stream so far, from this partition's share."""
        return self.tally.acts * self.partitions

    def apply(self, spec: FeatureSpec, interaction: Interaction, item_categories: Sequence[str], source_offset: int) -> bool:
        """Take one interaction in; return False, changing nothing, when its offset was already taken in."""
        if source_offset != NO_OFFSET and source_offset <= self.last_offset:
            return False
        self.last_offset = max(self.last_offset, source_offset)
        value = spec.normalised(interaction.kind, interaction.value)
        self.tally = self.tally.plus(value)
        self.kinds[interaction.kind] = self.kinds.get(interaction.kind, _EMPTY_TALLY).plus(value)
        for category in item_categories:
            self.categories[category] = self.categories.get(category, _EMPTY_TALLY).plus(value)
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
    tally: Tally = _EMPTY_TALLY
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
        before = self.decayed or [_EMPTY_TALLY] * len(spec.counters.half_lives_events)
        self.decayed = []
        for tally, half_life in zip(before, spec.counters.half_lives_events, strict=True):
            keep = math.exp2(-elapsed / half_life)
            self.decayed.append(Tally(tally.acts * keep, tally.rated * keep, tally.value_sum * keep).plus(value))
        self.clock = clock
        return True

    def to_bytes(self, spec: FeatureSpec) -> bytes:
        """Pack into `item_state_bytes(spec)` bytes; `from_bytes` restores an equal state."""
        num_half_lives = len(spec.counters.half_lives_events)
        decayed = self.decayed or [_EMPTY_TALLY] * num_half_lives
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
            total.kinds[name] = total.kinds.get(name, _EMPTY_TALLY).add(tally)
        for name, tally in partial.categories.items():
            total.categories[name] = total.categories.get(name, _EMPTY_TALLY).add(tally)
    return total


@dataclass(frozen=True, slots=True)
class ItemMatrix:
    """Merged item states as columns; decayed counters are brought up to the present."""

    tally_N3: Float64Array
    """acts, rated, value_sum."""
    value_sq_sum_N: Float64Array
    decayed_NH3: Float64Array

    def __len__(self) -> int:
        return len(self.tally_N3)


def merge_item_bytes(
    spec: FeatureSpec, partials_PN: Sequence[Sequence[bytes | None]], globals_P: Sequence[GlobalState | None]
) -> ItemMatrix:
    """Merge packed ItemStates.

    Args:
        partials_PN: for every partial (base first, then partitions: `partial_names`) the packed states of the N items, None where absent.
        globals_P: the GlobalStates of the same partials: their clocks say how much each partial has decayed since it was written.
    Raises:
        CorruptArtifact: a state is not of this spec.
    """
    size = item_state_bytes(spec)
    num_half_lives = len(spec.counters.half_lives_events)
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
    decayed_PNH3 = table_PNK[:, :, 6:].reshape(len(partials_PN), num_items, num_half_lives, 3)
    return ItemMatrix(
        tally_N3=table_PNK[:, :, 2:5].sum(axis=0),
        value_sq_sum_N=table_PNK[:, :, 5].sum(axis=0),
        decayed_NH3=(decayed_PNH3 * keep_PNH[..., None]).sum(axis=0),
    )


@dataclass(frozen=True, slots=True)
class Features:
    """Everything but embeddings that the network sees of one request. What is logged is what is scored: float16 from here on."""

    user_key: int
    history_keys_L: Int64Array
    """Table keys of the latest items, newest first; shorter than the spec's length for new users."""
    history_values_L: Float16Array
    user_U: Float16Array
    items_NF: Float16Array

    def __len__(self) -> int:
        return len(self.items_NF)


USER_FEATURES = ("log_count", "mean", "mean_last_5", "mean_history", "spread", "is_new", "rated_share")


def item_feature_names(spec: FeatureSpec) -> tuple[str, ...]:
    """Return the names of the columns of Features.items_NF."""
    lives = [f"{half_life:g}" for half_life in spec.counters.half_lives_events]
    return (
        "log_count",
        "log_share",
        "mean",
        "spread",
        *(f"log_rate_{life}" for life in lives),
        *(f"mean_{life}" for life in lives),
        *(f"trend_{life}" for life in lives),
        "expected_value",
        "category_value",
        "category_lift_mean",
        "category_lift_max",
        "category_new_share",
        "num_categories",
        "is_new",
    )


def build_features(
    spec: FeatureSpec,
    user_id: str,
    user: UserState | None,
    items: ItemMatrix,
    categories: Sequence[Sequence[str]],
    global_: GlobalState,
) -> Features:
    """Return the feature rows of one request.

    Args:
        user: None for a user never seen before.
        items: N merged item states; all-zero rows are items never seen before.
        categories: of each of the N items; empty when the catalogue does not know it.
        global_: `merge_globals` of all partials.
    """
    state = user or UserState()
    prior = (global_.tally.value_sum + NEUTRAL_VALUE) / (global_.tally.rated + 1.0)
    user_mean = _smoothed(state.tally.value_sum, state.tally.rated, prior)
    return Features(
        user_key=entity_key(user_id),
        history_keys_L=np.asarray([entity_key(entry.item_id) for entry in state.history], dtype=np.int64),
        history_values_L=np.asarray([entry.value for entry in state.history], dtype=np.float16),
        user_U=np.asarray(_user_features(state, user_mean, prior), dtype=np.float16),
        items_NF=np.hstack(
            [
                _item_columns(spec, items, global_, prior, user_mean),
                _category_columns(state, user_mean, categories, global_),
                (items.tally_N3[:, :1] == 0).astype(np.float64),
            ]
        ).astype(np.float16),
    )


def _smoothed(value_sum: float, rated: float, prior: float) -> float:
    return (value_sum + MEAN_PRIOR * prior) / (rated + MEAN_PRIOR)


def _user_features(state: UserState, user_mean: float, prior: float) -> list[float]:
    tally = state.tally
    latest = [entry.value for entry in state.history]
    variance = max(0.0, state.value_sq_sum / tally.rated - (tally.value_sum / tally.rated) ** 2) if tally.rated else 0.0
    return [
        0.25 * math.log1p(tally.acts),
        4.0 * (user_mean - prior),
        4.0 * (_smoothed(sum(latest[:5]), min(5, len(latest)), prior) - prior),
        4.0 * (_smoothed(sum(latest), len(latest), prior) - prior),
        4.0 * math.sqrt(variance),
        1.0 if tally.acts == 0 else 0.0,
        tally.rated / tally.acts if tally.acts else 0.0,
    ]


def _item_columns(spec: FeatureSpec, items: ItemMatrix, global_: GlobalState, prior: float, user_mean: float) -> Float64Array:
    count_N, rated_N, value_sum_N = items.tally_N3.T
    mean_N = (value_sum_N + MEAN_PRIOR * prior) / (rated_N + MEAN_PRIOR)
    raw_mean_N = value_sum_N / np.maximum(rated_N, 1.0)
    variance_N = np.maximum(items.value_sq_sum_N / np.maximum(rated_N, 1.0) - raw_mean_N**2, 0.0)
    half_lives_H = np.asarray(spec.counters.half_lives_events)
    # Events that the decayed counters can have seen: saturates at half_life / ln 2, smaller while the stream is young.
    window_H = half_lives_H / math.log(2.0) * (1.0 - np.exp2(-global_.tally.acts / half_lives_H)) + 1.0
    # Shares are in units of a thousandth of the stream; the pseudo-share of 0.1 keeps logarithms finite.
    share_N = 1e3 * count_N / (global_.tally.acts + 1.0) + 0.1
    rate_NH = 1e3 * items.decayed_NH3[:, :, 0] / window_H + 0.1
    recent_mean_NH = (items.decayed_NH3[:, :, 2] + MEAN_PRIOR * mean_N[:, None]) / (items.decayed_NH3[:, :, 1] + MEAN_PRIOR)
    return np.column_stack(
        [
            0.25 * np.log1p(count_N),
            0.5 * np.log(share_N),
            4.0 * (mean_N - prior),
            4.0 * np.sqrt(variance_N),
            0.5 * np.log(rate_NH),
            4.0 * (recent_mean_NH - prior),
            0.5 * (np.log(rate_NH) - np.log(share_N)[:, None]),
            4.0 * (mean_N + user_mean - 2.0 * prior),
        ]
    )


def _category_columns(state: UserState, user_mean: float, categories: Sequence[Sequence[str]], global_: GlobalState) -> Float64Array:
    names = sorted(set(chain.from_iterable(categories)))
    row_of = {name: row for row, name in enumerate(names)}
    flat = np.fromiter((row_of[name] for own in categories for name in own), dtype=np.int64)
    counts_N = np.fromiter(map(len, categories), dtype=np.int64, count=len(categories))
    columns_N5 = np.zeros((len(categories), 5))
    columns_N5[:, 4] = 0.25 * counts_N
    if len(flat):
        taste_F3 = np.asarray([_taste(state, user_mean, name, global_) for name in names])[flat]
        filled_N = counts_N > 0
        # Where each item's stretch of the flat list begins; items without categories have no stretch.
        starts = (np.cumsum(counts_N) - counts_N)[filled_N]
        means = np.add.reduceat(taste_F3, starts, axis=0) / counts_N[filled_N, None]
        columns_N5[filled_N, :2] = means[:, :2]
        columns_N5[filled_N, 2] = np.maximum.reduceat(taste_F3[:, 1], starts)
        columns_N5[filled_N, 3] = means[:, 2]
    return columns_N5


def _taste(state: UserState, user_mean: float, category: str, global_: GlobalState) -> tuple[float, float, float]:
    """Return what the user thinks of a category beside own mean, how much oftener than everyone they choose it (log), 1 if it is new."""
    mine = state.categories.get(category, _EMPTY_TALLY)
    everyone = global_.categories.get(category, _EMPTY_TALLY)
    value = (mine.value_sum - mine.rated * user_mean) / (mine.rated + CATEGORY_PRIOR)
    share_all = (everyone.acts + 1.0) / (global_.tally.acts + 2.0)
    share_mine = (mine.acts + CATEGORY_PRIOR * share_all) / (state.tally.acts + CATEGORY_PRIOR)
    return 4.0 * value, math.log(share_mine / share_all), 1.0 if mine.acts == 0 else 0.0


def pack_records(records: Iterable[tuple[str, bytes]]) -> dict[str, npt.NDArray[np.generic]]:
    """Pack (Redis key, value) pairs into arrays for an artifact: names "keys", "key_ends", "values", "value_ends"."""
    keys, values = [], []
    for key, value in records:
        keys.append(key.encode())
        values.append(value)
    return {
        "keys": np.frombuffer(b"".join(keys), dtype=np.uint8),
        "key_ends": np.cumsum([len(key) for key in keys], dtype=np.int64),
        "values": np.frombuffer(b"".join(values), dtype=np.uint8),
        "value_ends": np.cumsum([len(value) for value in values], dtype=np.int64),
    }


def unpack_records(arrays: Mapping[str, npt.NDArray[np.generic]]) -> list[tuple[str, bytes]]:
    """Invert `pack_records`.

    Raises:
        CorruptArtifact: the arrays do not fit each other.
    """
    keys, values = arrays["keys"].tobytes(), arrays["values"].tobytes()
    key_ends, value_ends = arrays["key_ends"].tolist(), arrays["value_ends"].tolist()
    if len(key_ends) != len(value_ends) or (key_ends and (key_ends[-1] != len(keys) or value_ends[-1] != len(values))):
        raise CorruptArtifact("feature records: keys and values do not fit each other")
    records = []
    key_at = value_at = 0
    for key_end, value_end in zip(key_ends, value_ends, strict=True):
        records.append((keys[key_at:key_end].decode(), values[value_at:value_end]))
        key_at, value_at = key_end, value_end
    return records
