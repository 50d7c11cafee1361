"""One embedding table in a mapped file: one writer, any number of reading processes, no lock on the read path.

File (int64 words, native order; the sections start at multiples of 64 bytes):

    header        magic, format version, edition, dim, capacity, cells, words per row, slots used so far, checksum of the rest and of
                  the default row
    default row   float32 [dim], what unknown ids read
    cells         the index, see `index`
    rows          per slot: lock and checksum, id, float32 [dim]

A row's lock is a sequence lock (the lower half of its word; `checks` says what is above): odd while the writer is in the row. A reader
copies the row between two looks at the lock and takes the copy only if the lock was even and did not change. The id stored with the row
catches the other race: a slot found in the index may have been given to another id by the time it is read; then the reader looks the id up
again. A full file does not grow: the writer makes a new edition.

What the writer finds is checked before it is used: a slot that an index cell names must hold that id. The rest is looked for (`check`).

Knows nothing of models, deltas or the order between tables (see `writer` and `reader`).
Source: sequence locks and the fences that they need: Boehm 2012, "Can seqlocks get along with programming language memory models?"
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.common.platform.errors import CorruptArtifact, Unavailable
from services.common.ranker.atomics import fence_acquire, fence_release, kernel, load_acquire, load_relaxed, prefetch, store_release
from services.common.ranker.tables.checks import (
    NOTHING,
    SEQUENCE_MASK,
    TableDamaged,
    are_in_place,
    damaged_cell,
    damaged_row,
    free_slots,
    sealed,
    sum_of,
)
from services.common.ranker.tables.index import (
    CELL_WORDS,
    FULL,
    MAX_LOAD,
    MISSING,
    Int64s,
    cells_for,
    find_many,
    find_one,
    home_cell,
    insert_many,
    live_entries,
    remove_many,
)
from services.common.ranker.tables.words import create_words, map_words

Float32s = NDArray[np.float32]
Bools = NDArray[np.bool_]

_MAGIC = 0x454C4241544D54  # "TMTABLE", little-endian
_FORMAT_VERSION = 2
_HEADER_WORDS = 64
_MAGIC_AT, _FORMAT_AT, _EDITION_AT, _DIM_AT, _CAPACITY_AT, _CELLS_AT, _STRIDE_AT, _USED_AT, _SUM_AT = range(9)
_LINE_WORDS = 8

_LOCK_AT, _ID_AT, _VALUES_AT = 0, 1, 2
_BLOCK = 32
# Each look takes nanoseconds and a writer is in a row for less than a microsecond, unless it lost its core: then the caller sleeps.
_MAX_LOOKS = 1000
_TORN, _OTHER_ID, _READ = 0, 1, 2


class RowBusy(Unavailable):
    """A row stayed half-written for as long as the reader looked: its writer is off its core, or died. Retry after a pause."""


@kernel
def _copy_row(words: Int64s, floats: Float32s, base: int, key: np.int64, out: Float32s) -> int:
    """Copy the row at word `base` to `out` [dim] if it is whole and belongs to `key`; return _READ, _OTHER_ID or _TORN."""
    lock = load_acquire(words, base + _LOCK_AT)
    if lock & 1:
        return _TORN
    stored = words[base + _ID_AT]
    first = 2 * (base + _VALUES_AT)
    for c in range(out.size):
        out[c] = floats[first + c]
    fence_acquire()
    if load_relaxed(words, base + _LOCK_AT) != lock:
        return _TORN
    return _READ if stored == key else _OTHER_ID


@kernel
def _read_rows(
    cells: Int64s, words: Int64s, floats: Float32s, stride: int, default_row: Float32s, ids: Int64s, rows: Float32s, found: Bools
) -> int:
    """Fill rows [N, dim] and found [N]; return -1, or the index of the first id whose row could not be read whole."""
    num_slots = words.size // stride
    slots = np.empty(_BLOCK, np.int64)
    for start in range(0, ids.size, _BLOCK):
        count = min(_BLOCK, ids.size - start)
        find_many(cells, ids[start : start + count], slots[:count])
        for i in range(count):
            if 0 <= slots[i] < num_slots:
                for line in range(0, stride, _LINE_WORDS):
                    prefetch(words, slots[i] * stride + line)
        for i in range(start, start + count):
            slot = slots[i - start]
            looks = 0
            while 0 <= slot < num_slots:
                outcome = _copy_row(words, floats, slot * stride, ids[i], rows[i])
                if outcome == _READ:
                    break
                looks += 1
                if looks == _MAX_LOOKS:
                    return i
                slot = find_one(cells, ids[i], home_cell(ids[i], cells.size // 2))
            found[i] = 0 <= slot < num_slots
            if not found[i]:
                rows[i] = default_row
    return -1


@kernel
def _write_rows(words: Int64s, floats: Float32s, stride: int, slots: Int64s, ids: Int64s, rows: Float32s) -> None:
    """Write rows [N, dim] under their locks."""
    for i in range(slots.size):
        base = slots[i] * stride
        # Odd whatever stood there: a slot that nobody has written for long may be damaged.
        sequence = words[base + _LOCK_AT] & SEQUENCE_MASK | 1
        store_release(words, base + _LOCK_AT, sequence)
        # The odd lock must be seen before anything of the new row.
        fence_release()
        words[base + _ID_AT] = ids[i]
        first = 2 * (base + _VALUES_AT)
        for c in range(rows.shape[1]):
            floats[first + c] = rows[i, c]
        store_release(words, base + _LOCK_AT, sealed(sequence + 1, sum_of(words, base + _ID_AT, stride - 1)))


@kernel
def _free_rows(words: Int64s, stride: int, slots: Int64s) -> None:
    """Mark rows as free. They stay readable: a reader may have found them just before they were removed from the index."""
    for i in range(slots.size):
        base = slots[i] * stride
        checksum = sum_of(words, base + _ID_AT, stride - 1) ^ SEQUENCE_MASK
        store_release(words, base + _LOCK_AT, sealed(words[base + _LOCK_AT] + 2, checksum))


class _Layout:
    """The sections of a mapped table as arrays without copies."""

    def __init__(self, path: Path, words: Int64s) -> None:
        """Raises CorruptArtifact if the words are not a table of this format."""
        if words.size < _HEADER_WORDS or words[_MAGIC_AT] != _MAGIC:
            raise CorruptArtifact(f"mapped table {path}: no table, or not of this machine's byte order")
        if words[_FORMAT_AT] != _FORMAT_VERSION:
            raise CorruptArtifact(f"mapped table {path}: format version {words[_FORMAT_AT]}, this program reads {_FORMAT_VERSION}")
        self.header = words[:_HEADER_WORDS]
        self.dim = int(words[_DIM_AT])
        self.capacity = int(words[_CAPACITY_AT])
        self.stride = int(words[_STRIDE_AT])
        self.edition = int(words[_EDITION_AT])
        num_cells = int(words[_CELLS_AT])
        expected = words_needed(self.dim, self.capacity)
        if self.stride != _stride(self.dim) or num_cells != cells_for(self.capacity) or words.size != expected:
            raise CorruptArtifact(f"mapped table {path}: {words.size} words do not fit its header: truncated or damaged")
        cells_at = _HEADER_WORDS + _default_row_words(self.dim)
        rows_at = cells_at + CELL_WORDS * num_cells
        self._default_words = words[_HEADER_WORDS:cells_at]
        self.default_row = self._default_words.view(np.float32)[: self.dim]
        self.cells = words[cells_at:rows_at]
        self.row_words = words[rows_at:]
        self.row_floats = self.row_words.view(np.float32)
        self.path = path

    def checksum(self) -> int:
        """Of what never changes in the header, and of the default row."""
        return sum_of(self.header, 0, _USED_AT) ^ sum_of(self._default_words, 0, self._default_words.size)

    def check_header(self) -> None:
        """Raise TableDamaged if the header or the default row changed by itself."""
        if self.header[_SUM_AT] != self.checksum() or not 0 <= self.header[_USED_AT] <= self.capacity:
            raise TableDamaged(f"mapped table {self.path}: the header or the default row changed by itself")

    def check(self, num_used: int, start: float, end: float) -> None:
        """Raise TableDamaged if a row or a cell in this share of the table, both from 0 to 1, changed by itself."""
        first, stop = int(start * num_used), int(end * num_used)
        slot = damaged_row(self.cells, self.row_words, self.stride, first, stop)
        if slot != NOTHING:
            raise TableDamaged(f"mapped table {self.path}: the row in slot {slot} is not what was written, or is not found")
        num_cells = self.cells.size // CELL_WORDS
        cell = damaged_cell(self.cells, self.row_words, self.stride, num_used, int(start * num_cells), int(end * num_cells))
        if cell != NOTHING:
            raise TableDamaged(f"mapped table {self.path}: cell {cell} of the index is not what was written")


def _default_row_words(dim: int) -> int:
    """Return the words of the default row, padded to whole cache lines."""
    return -(-dim // (2 * _LINE_WORDS)) * _LINE_WORDS


def _stride(dim: int) -> int:
    return _VALUES_AT + (dim + 1) // 2


def words_needed(dim: int, capacity: int) -> int:
    """Return the size in words of a table file."""
    return _HEADER_WORDS + _default_row_words(dim) + CELL_WORDS * cells_for(capacity) + _stride(dim) * capacity


def _entries(layout: _Layout) -> tuple[Int64s, Int64s]:
    """Return (ids, slots) of the live cells, in their order."""
    ids, slots = np.empty(layout.capacity, np.int64), np.empty(layout.capacity, np.int64)
    count = live_entries(layout.cells, ids, slots)
    return ids[:count], slots[:count]


class MappedTableReader:
    """Reads one mapped table, at any time, from any process and thread."""

    def __init__(self, path: Path) -> None:
        """Map the table read-only.

        Raises:
            FileNotFoundError: it is not there (any more).
            CorruptArtifact: it is no table, or of another format.
        """
        self._layout = _Layout(path, map_words(path, writable=False))
        self._path = path

    @property
    def dim(self) -> int:
        """Columns of a row."""
        return self._layout.dim

    def read(self, ids: Int64s, rows: Float32s, found: Bools) -> None:
        """Fill rows float32 [N, dim] and found bool [N] for ids int64 [N]. Every row is whole; unknown ids read the default row.

        Raises:
            RowBusy: a row is being written and did not come to rest.
        """
        at = self._layout
        stuck = _read_rows(at.cells, at.row_words, at.row_floats, at.stride, at.default_row, ids, rows, found)
        if stuck >= 0:
            raise RowBusy(f"mapped table {self._path}: the row of id {ids[stuck]} is being written")

    def check(self) -> None:
        """Look the whole table over. Raises TableDamaged; what is written during the call may seem damaged."""
        self._layout.check_header()
        self._layout.check(int(self._layout.header[_USED_AT]), 0.0, 1.0)

    def ids(self) -> Int64s:
        """Return the ids present, ascending. Those that come or go during the call may be there or not."""
        ids = np.sort(_entries(self._layout)[0])
        # An id that was removed and came back during the call may have been met twice.
        distinct: Int64s = ids[np.append(True, ids[1:] != ids[:-1])[: ids.size]]
        return distinct


class MappedTableWriter:
    """Writes one mapped table. There must be one writer only; whoever makes it holds the folder's `WriterLock`."""

    def __init__(self, path: Path) -> None:
        """Map an existing table for writing.

        Raises:
            FileNotFoundError: it is not there.
            CorruptArtifact: it is no table, or of another format, or (TableDamaged) damaged.
        """
        self._layout = _Layout(path, map_words(path, writable=True))
        at = self._layout
        at.check_header()
        self._num_used = int(at.header[_USED_AT])
        at.check(self._num_used, 0.0, 1.0)
        self._taken_cells = int(np.count_nonzero(at.cells[1::CELL_WORDS]))
        free = np.empty(self._num_used, np.int64)
        self._free: list[int] = free[: free_slots(at.row_words, at.stride, self._num_used, free)].tolist()
        self._default_row = at.default_row.copy()

    @classmethod
    def create(cls, path: Path, *, edition: int, dim: int, capacity: int, default_row: Float32s) -> MappedTableWriter:
        """Make an empty table for `capacity` rows; `default_row` float32 [dim] is what unknown ids read."""
        words = create_words(path, words_needed(dim, capacity))
        words[_FORMAT_AT], words[_EDITION_AT], words[_DIM_AT] = _FORMAT_VERSION, edition, dim
        words[_CAPACITY_AT], words[_CELLS_AT], words[_STRIDE_AT] = capacity, cells_for(capacity), _stride(dim)
        words[_HEADER_WORDS : _HEADER_WORDS + _default_row_words(dim)].view(np.float32)[:dim] = default_row
        words[_MAGIC_AT] = _MAGIC
        words[_SUM_AT] = _Layout(path, words).checksum()
        return cls(path)

    @property
    def dim(self) -> int:
        """Columns of a row."""
        return self._layout.dim

    @property
    def default_row(self) -> Float32s:
        """What unknown ids read, float32 [dim]."""
        return self._default_row

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._num_used - len(self._free)

    def missing(self, ids: Int64s) -> Int64s:
        """Return those of ids [N] that have no row."""
        absent: Int64s = ids[self._find(ids) == MISSING]
        return absent

    def has_room_for(self, num_new: int) -> bool:
        """Return whether `num_new` more ids fit."""
        num_cells = self._layout.cells.size // CELL_WORDS
        return len(self) + num_new <= self._layout.capacity and self._taken_cells + num_new <= num_cells * MAX_LOAD

    def upsert(self, ids: Int64s, rows: Float32s) -> None:
        """Set rows float32 [N, dim] of ids int64 [N] (distinct). The caller has made sure that the new ones fit.

        Raises:
            TableDamaged: the index names a row that is another id's.
        """
        at = self._layout
        slots = self._find(ids)
        self._check_found(ids, slots)
        new = slots == MISSING
        slots[new] = self._take_slots(int(np.count_nonzero(new)))
        # The row first: an id that is found always has one.
        _write_rows(at.row_words, at.row_floats, at.stride, slots, ids, np.ascontiguousarray(rows, np.float32))
        taken = insert_many(at.cells, ids[new], slots[new])
        if taken == FULL:
            raise TableDamaged(f"mapped table {at.path}: the index is full of cells that nobody wrote")
        self._taken_cells += taken

    def delete(self, ids: Int64s) -> None:
        """Remove ids [N] (distinct); absent ones are no error.

        Raises:
            TableDamaged: the index names a row that is another id's.
        """
        slots = np.empty(ids.size, np.int64)
        remove_many(self._layout.cells, ids, slots)
        self._check_found(ids, slots)
        had = slots != MISSING
        _free_rows(self._layout.row_words, self._layout.stride, slots[had])
        self._free.extend(slots[had].tolist())

    def check(self, start: float, end: float) -> None:
        """Look over a share of the table, from 0 to 1; the header with its beginning.

        Raises:
            TableDamaged: something is not what this writer wrote.
        """
        if start <= 0.0:
            self._layout.check_header()
            if self._layout.header[_USED_AT] != self._num_used:
                raise TableDamaged(f"mapped table {self._layout.path}: the header changed by itself")
        self._layout.check(self._num_used, start, end)

    def contents(self) -> tuple[Int64s, Float32s]:
        """Return a copy of all ids [M], in no order, and their rows [M, dim]. Raises TableDamaged rather than copy damage."""
        self.check(0.0, 1.0)
        at = self._layout
        ids, slots = _entries(at)
        values_at = 2 * _VALUES_AT
        rows: Float32s = at.row_floats.reshape(at.capacity, 2 * at.stride)[slots, values_at : values_at + at.dim]
        return ids, rows

    def _find(self, ids: Int64s) -> Int64s:
        slots = np.empty(ids.size, np.int64)
        find_many(self._layout.cells, ids, slots)
        return slots

    def _check_found(self, ids: Int64s, slots: Int64s) -> None:
        at = self._layout
        if not are_in_place(at.row_words, at.stride, self._num_used, ids, slots):
            raise TableDamaged(f"mapped table {at.path}: the index names rows that are other ids'")

    def _take_slots(self, count: int) -> Int64s:
        reused = [self._free.pop() for _ in range(min(count, len(self._free)))]
        fresh = range(self._num_used, self._num_used + count - len(reused))
        self._num_used += len(fresh)
        self._layout.header[_USED_AT] = self._num_used
        return np.array([*reused, *fresh], np.int64)
