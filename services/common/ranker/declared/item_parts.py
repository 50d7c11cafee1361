"""What a plan computes of each item alone, kept for a whole catalogue: computed when an item changes, picked when it is a candidate.

Shapes: N items of a request, C slots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from services.common.ranker.declared.encodings import Keys
from services.common.ranker.declared.plan import NONE, Attributes, Part, Plan
from services.common.ranker.declared.values import Column, Float64Array, Int64Array, Numbers, Words, stretches

Kept = TypeVar("Kept", bound=np.generic)

# Slots that changed or removed items have left wait for so many others before they are used again: a reader on another thread may have
# looked one up just before, and takes what is there within microseconds.
_REST = 1_024
_FIRST_SLOTS = 1_024


class ItemParts:
    """The items' parts of a plan; an item that is not there has none of its attributes. One thread writes, any may read."""

    def __init__(self, plan: Plan) -> None:
        """Empty."""
        self._plan = plan
        # Slot 0 is nothing.
        nothing = plan.items([NONE])
        self._numbers = np.repeat(nothing.numbers, _FIRST_SLOTS, axis=0)
        self._columns = {name: _kept(nothing.columns[name]) for name in plan.item_columns_of_pairs}
        self._keys = {name: _KeptKeys(nothing.keys[name]) for name in plan.item_keys}
        self._slot_of: dict[str, int] = {}
        self._used = 1
        self._left: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._slot_of)

    def put(self, items: Mapping[str, Attributes]) -> None:
        """Take attributes of items in, by item id: all that each has. Raises WrongValue, and then takes none."""
        part = self._plan.items(list(items.values()))
        slots = np.asarray([self._free_slot() for _ in items], dtype=np.int64)
        if len(slots) and slots.max() >= len(self._numbers):
            self._numbers = _grown(self._numbers, int(slots.max()) + 1)
        self._numbers[slots] = part.numbers
        for name, kept in self._columns.items():
            kept.put(slots, part.columns[name])
        for name, keys in self._keys.items():
            keys.put(slots, part.keys[name])
        for item_id, slot in zip(items, slots.tolist(), strict=True):
            before = self._slot_of.get(item_id)
            self._slot_of[item_id] = slot
            if before is not None:
                self._left.append(before)

    def remove(self, item_id: str) -> None:
        """Forget an item; nothing happens when it is not there."""
        slot = self._slot_of.pop(item_id, None)
        if slot is not None:
            self._left.append(slot)

    def part(self, item_ids: Sequence[str]) -> Part:
        """Return what `Plan.items` returns of N items, as far as `Plan.numbers` and `Plan.run` need it."""
        slots_N = np.fromiter(map(self._slot_of.get, item_ids, repeat(0)), dtype=np.int64, count=len(item_ids))
        columns = {name: kept.take(slots_N) for name, kept in self._columns.items()}
        keys = {name: kept.take(slots_N) for name, kept in self._keys.items()}
        return Part(len(item_ids), columns, self._numbers[slots_N], keys)

    def _free_slot(self) -> int:
        if len(self._left) > _REST:
            return self._left.popleft()
        self._used += 1
        return self._used - 1


class _KeptNumbers:
    def __init__(self, nothing: Numbers) -> None:
        self._values_CD: Float64Array = np.repeat(nothing.values_ND, _FIRST_SLOTS, axis=0)

    def put(self, slots: Int64Array, column: Column) -> None:
        assert isinstance(column, Numbers)
        if len(slots) and slots.max() >= len(self._values_CD):
            self._values_CD = _grown(self._values_CD, int(slots.max()) + 1)
        self._values_CD[slots] = column.values_ND

    def take(self, slots_N: Int64Array) -> Numbers:
        return Numbers(self._values_CD[slots_N])


class _KeptWords:
    """Words by slot. A slot is replaced as a whole, so a reader sees the words of one version."""

    def __init__(self, nothing: Words) -> None:
        self._words: list[tuple[str, ...]] = [tuple(nothing.lists()[0])]

    def put(self, slots: Int64Array, column: Column) -> None:
        assert isinstance(column, Words)
        for slot, words in zip(slots.tolist(), column.lists(), strict=True):
            self._words += [()] * (slot + 1 - len(self._words))
            self._words[slot] = tuple(words)

    def take(self, slots_N: Int64Array) -> Words:
        return Words.of([self._words[slot] for slot in slots_N.tolist()])


class _KeptKeys:
    """Keys by slot. Nearly every item has one of a feature; those of others are kept as a whole, so a reader sees those of one version."""

    def __init__(self, nothing: Keys) -> None:
        self._table, self._pooling = nothing.table, nothing.pooling
        self._only_C1: npt.NDArray[np.uint64] = np.repeat(nothing.keys_S[None, :1], _FIRST_SLOTS, axis=0)
        self._several: dict[int, npt.NDArray[np.uint64]] = {}

    def put(self, slots: Int64Array, keys: Keys) -> None:
        if len(slots) and slots.max() >= len(self._only_C1):
            self._only_C1 = _grown(self._only_C1, int(slots.max()) + 1)
        for at, slot in enumerate(slots.tolist()):
            own = keys.keys_S[keys.offsets[at] : keys.offsets[at + 1]]
            if len(own) == 1:
                self._only_C1[slot] = own
                self._several.pop(slot, None)
            else:
                self._several[slot] = own.copy()

    def take(self, slots_N: Int64Array) -> Keys:
        several = {at: self._several.get(slot) for at, slot in enumerate(slots_N.tolist())} if self._several else {}
        found = {at: own for at, own in several.items() if own is not None}
        if not found:
            return Keys(self._table, self._pooling, self._only_C1[slots_N, 0], np.arange(len(slots_N) + 1, dtype=np.int64))
        counts_N = np.ones(len(slots_N), dtype=np.int64)
        counts_N[list(found)] = [len(own) for own in found.values()]
        starts_N = np.arange(len(slots_N), dtype=np.int64)
        starts_N[list(found)] = len(slots_N) + np.cumsum([0, *map(len, found.values())])[:-1]
        places_S, offsets = stretches(starts_N, counts_N)
        every = np.concatenate([self._only_C1[slots_N, 0], *found.values()])
        return Keys(self._table, self._pooling, every[places_S], offsets)


def _kept(column: Column) -> _KeptNumbers | _KeptWords:
    return _KeptNumbers(column) if isinstance(column, Numbers) else _KeptWords(column)


def _grown(rows: npt.NDArray[Kept], fewest: int) -> npt.NDArray[Kept]:
    """Return a copy with room for more rows; readers keep the old one."""
    more = np.empty((max(fewest, 2 * len(rows)), rows.shape[1]), dtype=rows.dtype)
    more[: len(rows)] = rows
    return more
