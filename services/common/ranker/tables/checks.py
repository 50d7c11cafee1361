"""Checksums of mapped memory, and the search for bits that changed by themselves (memory, disk, a stray write of another process).

A row, a buffer of dense weights and the control block each carry a checksum of what their writer wrote; readers of the hot path do not look
at it. A row's stands in the upper half of its lock word, as it is while the row lives and inverted once the row is free, so that a lost
index cell is seen as well: a living row that is not found.

Whatever is found is `TableDamaged`; nothing is repaired, the tables are built again from a base. Knows nothing of files or processes.
"""

from __future__ import annotations

import numpy as np

from services.common.platform.errors import CorruptArtifact
from services.common.ranker.atomics import kernel, load_acquire, prefetch
from services.common.ranker.tables.index import CELL_WORDS, DELETED, EMPTY, MISSING, Int64s, find_cell, home_cell

NOTHING = -1
# The lower half of a lock word: the sequence. Above it is the checksum.
SEQUENCE_MASK = 0xFFFFFFFF
_SUM_SHIFT = 32
_HALF = np.uint64(32)
_SEED = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
_BLOCK = 32


class TableDamaged(CorruptArtifact):
    """Mapped memory is not what its writer wrote. The tables must be built again from a base; until then they are not served."""


@kernel
def sum_of(words: Int64s, first: int, count: int) -> int:
    """Return a checksum, 0 to 2**32 - 1, of words[first : first + count].

    A change of any one word changes all 64 bits of the state for certain, and the half that is kept but for one time in 2**32.
    """
    state = _SEED
    for i in range(first, first + count):
        state = (state ^ np.uint64(words[i])) * _MULTIPLIER
        state ^= state >> _HALF
    return int(state >> _HALF)


@kernel
def sealed(sequence: int, checksum: int) -> int:
    """Return a lock word of this sequence (its lower half) and checksum."""
    return int((checksum << _SUM_SHIFT) | (sequence & SEQUENCE_MASK))


@kernel
def checksum_in(lock: int) -> int:
    """Return the checksum in a lock word."""
    return (lock >> _SUM_SHIFT) & SEQUENCE_MASK


@kernel
def is_sealed(words: Int64s, first: int, count: int) -> bool:
    """Return whether words[first], a lock word at rest, carries the checksum of the count - 1 words behind it."""
    lock = load_acquire(words, first)
    return not lock & 1 and checksum_in(lock) == sum_of(words, first + 1, count - 1)


@kernel
def damaged_row(cells: Int64s, words: Int64s, stride: int, first: int, end: int) -> int:
    """Return the first slot of [first, end) that is not whole, or lives and is not found, or is free and found; NOTHING if all are sound.

    All these slots have been written. What is written during the call may seem damaged.
    """
    num_cells = cells.size // CELL_WORDS
    for start in range(first, end, _BLOCK):
        stop = min(start + _BLOCK, end)
        for slot in range(start, stop):
            prefetch(cells, CELL_WORDS * home_cell(words[slot * stride + 1], num_cells))
        for slot in range(start, stop):
            base = slot * stride
            lock = load_acquire(words, base)
            checksum = sum_of(words, base + 1, stride - 1)
            lives = checksum_in(lock) == checksum
            if lock & 1 or not (lives or checksum_in(lock) == checksum ^ SEQUENCE_MASK):
                return slot
            key = words[base + 1]
            cell = find_cell(cells, key, home_cell(key, num_cells))
            if (cell >= 0 and cells[CELL_WORDS * cell + 1] == slot + 1) != lives:
                return slot
    return NOTHING


@kernel
def damaged_cell(cells: Int64s, words: Int64s, stride: int, num_used: int, first: int, end: int) -> int:
    """Return the first cell of [first, end) whose state no writer leaves, or which leads to another id's row or is not the one found first.

    NOTHING if all are sound. What is written during the call may seem damaged.
    """
    num_cells = cells.size // CELL_WORDS
    for cell in range(first, end):
        state = load_acquire(cells, CELL_WORDS * cell + 1)
        if state in (EMPTY, DELETED):
            continue
        slot = state - 1
        if slot < 0 or slot >= num_used:
            return cell
        key = cells[CELL_WORDS * cell]
        if words[slot * stride + 1] != key or find_cell(cells, key, home_cell(key, num_cells)) != cell:
            return cell
    return NOTHING


@kernel
def are_in_place(words: Int64s, stride: int, num_used: int, ids: Int64s, slots: Int64s) -> bool:
    """Return whether each of slots [N] that is not MISSING holds its id of ids [N]."""
    for start in range(0, ids.size, _BLOCK):
        stop = min(start + _BLOCK, ids.size)
        for i in range(start, stop):
            if slots[i] != MISSING and not 0 <= slots[i] < num_used:
                return False
            prefetch(words, slots[i] * stride)
        for i in range(start, stop):
            if slots[i] != MISSING and words[slots[i] * stride + 1] != ids[i]:
                return False
    return True


@kernel
def free_slots(words: Int64s, stride: int, num_used: int, slots: Int64s) -> int:
    """Copy out the slots whose rows are free, of rows that are all sound; return their number."""
    count = 0
    for slot in range(num_used):
        base = slot * stride
        if checksum_in(words[base]) != sum_of(words, base + 1, stride - 1):
            slots[count] = slot
            count += 1
    return count
