"""Open-addressing index int64 id -> slot, with linear probing. Works on ordinary and on mapped memory.

A cell is two neighbouring words (16 bytes, so key and slot share a cache line): the key and its state. State 0 is an empty cell, -1 a
deleted one, anything above is slot + 1. Hence zeroed memory is an empty index, and every int64, 0 and the extremes included, is a valid
key.

In mapped memory one writer changes cells while readers probe. A cell's key is written before its state is published, and cells never move;
but a reader may meet a deleted cell that is being re-used for another key and then return that key's slot, or a stale one. So whoever reads
concurrently must check the key stored with the row (see `mapped`).

Knows nothing of rows, files or processes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.common.ranker.atomics import kernel, load_acquire, prefetch, store_release

Int64s = NDArray[np.int64]

CELL_WORDS = 2
MISSING = -1
EMPTY = 0
DELETED = -1
FULL = -1
# Probes stay short up to here (Knuth: 2.2 probes for a hit, 6 for a miss, at 0.7).
MAX_LOAD = 0.7
_MIN_CELLS = 16
_BLOCK = 32

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)


@kernel
def mix64(value: np.uint64) -> np.uint64:
    """Return a bijective scramble of 64 bits. Source: Steele et al. 2014, SplitMix64's finaliser."""
    value = (value ^ (value >> _SHIFT_1)) * _MIX_1
    value = (value ^ (value >> _SHIFT_2)) * _MIX_2
    return value ^ (value >> _SHIFT_3)


@kernel
def home_cell(key: np.int64, num_cells: int) -> np.int64:
    """Return the cell where probing for `key` starts; num_cells is a power of two."""
    return np.int64(mix64(np.uint64(key)) & np.uint64(num_cells - 1))


@kernel
def find_one(words: Int64s, key: np.int64, home: np.int64) -> np.int64:
    """Return the slot of `key`, or MISSING."""
    num_cells = words.size // 2
    for probe in range(num_cells):
        cell = (home + probe) & (num_cells - 1)
        state = load_acquire(words, 2 * cell + 1)
        if state == EMPTY:
            break
        if state != DELETED and words[2 * cell] == key:
            return np.int64(state - 1)
    return np.int64(MISSING)


@kernel
def find_cell(words: Int64s, key: np.int64, home: np.int64) -> np.int64:
    """Return the cell of `key`, or MISSING."""
    num_cells = words.size // 2
    for probe in range(num_cells):
        cell = (home + probe) & (num_cells - 1)
        state = load_acquire(words, 2 * cell + 1)
        if state == EMPTY:
            break
        if state != DELETED and words[2 * cell] == key:
            return np.int64(cell)
    return np.int64(MISSING)


@kernel
def find_many(words: Int64s, ids: Int64s, slots: Int64s) -> None:
    """Fill `slots` [N] with the slot of each of `ids` [N], or MISSING."""
    num_cells = words.size // 2
    homes = np.empty(_BLOCK, np.int64)
    for start in range(0, ids.size, _BLOCK):
        count = min(_BLOCK, ids.size - start)
        # All homes of a block are on their way from memory before the first is read.
        for i in range(count):
            homes[i] = home_cell(ids[start + i], num_cells)
            prefetch(words, 2 * homes[i])
        for i in range(count):
            slots[start + i] = find_one(words, ids[start + i], homes[i])


@kernel
def insert_many(words: Int64s, ids: Int64s, slots: Int64s) -> int:
    """Insert ids [N] (distinct, none present) with their slots [N]; return how many empty cells were taken.

    The caller keeps live plus deleted cells within MAX_LOAD of all. FULL if there is no cell nevertheless: the memory is damaged.
    """
    num_cells = words.size // 2
    taken = 0
    for i in range(ids.size):
        cell = home_cell(ids[i], num_cells)
        probes = 0
        while words[2 * cell + 1] not in (EMPTY, DELETED):
            cell = (cell + 1) & (num_cells - 1)
            probes += 1
            if probes == num_cells:
                return FULL
        if words[2 * cell + 1] == EMPTY:
            taken += 1
        words[2 * cell] = ids[i]
        store_release(words, 2 * cell + 1, slots[i] + 1)
    return taken


@kernel
def remove_many(words: Int64s, ids: Int64s, slots: Int64s) -> None:
    """Remove ids [N]; fill `slots` [N] with the slot that each had, or MISSING if it was absent."""
    num_cells = words.size // 2
    for i in range(ids.size):
        slots[i] = MISSING
        cell = find_cell(words, ids[i], home_cell(ids[i], num_cells))
        if cell >= 0:
            slots[i] = words[2 * cell + 1] - 1
            store_release(words, 2 * cell + 1, np.int64(DELETED))


@kernel
def live_entries(words: Int64s, ids: Int64s, slots: Int64s) -> int:
    """Copy out up to ids.size live entries in cell order; return their number."""
    count = 0
    for cell in range(words.size // 2):
        state = load_acquire(words, 2 * cell + 1)
        if state > EMPTY and count < ids.size:
            ids[count] = words[2 * cell]
            slots[count] = state - 1
            count += 1
    return count


def cells_for(num_entries: int) -> int:
    """Return the power of two of cells that holds `num_entries` within MAX_LOAD."""
    cells = _MIN_CELLS
    while num_entries > cells * MAX_LOAD:
        cells *= 2
    return cells


class SlotIndex:
    """A growing index in ordinary memory that also hands out slots: the lowest never used, or one freed before.

    The owner keeps arrays addressed by slot and grows them to `capacity` after each `insert`. Not thread-safe.
    """

    def __init__(self, capacity: int = 1024) -> None:
        """Make room for `capacity` > 0 slots."""
        self.capacity = capacity
        self._words = np.zeros(CELL_WORDS * cells_for(capacity), np.int64)
        self._taken_cells = 0
        self._num_slots_used = 0
        self._free: list[int] = []

    def __len__(self) -> int:
        """Return the number of ids present."""
        return self._num_slots_used - len(self._free)

    def find(self, ids: Int64s) -> Int64s:
        """Return the slot of each of ids [N] (repeats allowed), or MISSING."""
        slots = np.empty(ids.size, np.int64)
        find_many(self._words, ids, slots)
        return slots

    def insert(self, ids: Int64s) -> Int64s:
        """Give each of ids [N] (distinct, none present) a slot and return the slots; `capacity` may double."""
        num_reused = min(len(self._free), ids.size)
        slots = np.arange(self._num_slots_used - num_reused, self._num_slots_used + ids.size - num_reused, dtype=np.int64)
        if num_reused:
            slots[:num_reused] = self._free[: -num_reused - 1 : -1]
            del self._free[-num_reused:]
        self._num_slots_used += ids.size - num_reused
        while self._num_slots_used > self.capacity:
            self.capacity *= 2
        if self._taken_cells + ids.size > self._words.size // CELL_WORDS * MAX_LOAD:
            self._rebuild(len(self))
        self._taken_cells += insert_many(self._words, ids, slots)
        return slots

    def remove(self, ids: Int64s) -> Int64s:
        """Remove ids [N] (distinct) and return the slots that they had, MISSING for those absent."""
        slots = np.empty(ids.size, np.int64)
        remove_many(self._words, ids, slots)
        self._free.extend(slots[slots != MISSING].tolist())
        return slots

    def entries(self) -> tuple[Int64s, Int64s]:
        """Return (ids [M] ascending, their slots [M])."""
        # At most this many cells are live, ids just being inserted excepted.
        ids, slots = np.empty(self._num_slots_used, np.int64), np.empty(self._num_slots_used, np.int64)
        count = live_entries(self._words, ids, slots)
        order = np.argsort(ids[:count])
        return ids[:count][order], slots[:count][order]

    def _rebuild(self, num_entries: int) -> None:
        """Move the live entries to a table without deleted cells, with room for twice `num_entries`."""
        ids, slots = self.entries()
        self._words = np.zeros(CELL_WORDS * cells_for(2 * num_entries), np.int64)
        self._taken_cells = insert_many(self._words, ids, slots)
