"""When an id earns a row: frequency filters in front of an embedding table. Pure.

An id counts its occurrences here until it is admitted; its count then moves to its row. What is counted here is bounded in any case:

- exact counting (40 bytes an id) keeps the `max_waiting` ids seen last;
- a counting Bloom filter (11 bytes an id at a probability of 1 %) forgets what was counted one to two times `max_element_size` new ids ago.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from services.common.ranker.atomics import kernel
from services.common.ranker.spec_parts import MAX_BLOOM_COUNT
from services.common.ranker.tables.index import MISSING, Int64s, SlotIndex, mix64

Arrays = dict[str, NDArray[np.generic]]
Bytes = NDArray[np.uint8]

_PACKED_COUNT = 15
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The rule by which an id earns a row. Names of DeepRec and TorchRec where they have one."""

    filter_freq: int = 1
    """Occurrences after which an id gets its own row; 0 and 1 admit at first sight."""
    max_element_size: int = 0
    """0 counts exactly; above, a counting Bloom filter sized for this many un-admitted ids."""
    false_positive_probability: float = 0.01
    """Of the Bloom filter: the largest share of ids that it takes for seen before though they were not."""
    max_waiting: int = 1 << 18
    """Of exact counting: un-admitted ids that are counted at once. When there are more, those seen longest ago go first."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.filter_freq < 0 or self.max_element_size < 0 or self.max_waiting < 1:
            raise ValueError("filter_freq and max_element_size must not be negative, max_waiting must be positive")
        if not 0 < self.false_positive_probability < 1:
            raise ValueError(f"false_positive_probability {self.false_positive_probability} is not between 0 and 1")
        if self.max_element_size and self.filter_freq > MAX_BLOOM_COUNT:
            raise ValueError(f"a Bloom filter counts to {MAX_BLOOM_COUNT}: filter_freq {self.filter_freq} needs max_element_size 0")


class OccurrenceCounter(Protocol):
    """Counts occurrences of ids that have no row yet."""

    def add(self, ids: Int64s, counts: Int64s, step: int) -> None:
        """Add counts [N] to ids [N] (distinct)."""

    def get(self, ids: Int64s) -> Int64s:
        """Return the count of each of ids [N]; a Bloom filter may return more, never less."""

    def forget(self, ids: Int64s) -> None:
        """Drop the counts of ids [N] (distinct): they have rows now."""

    def expire(self, last_step_kept: int) -> None:
        """Drop ids last seen before `last_step_kept`; a Bloom filter drops them within the same time again."""

    def state_arrays(self) -> Arrays:
        """Return the state, independent of insertion order."""

    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Replace the state. Raises KeyError or ValueError if arrays are missing or of another shape."""


def check_array(arrays: Mapping[str, NDArray[np.generic]], key: str, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    """Raise KeyError if there is no array `key`, ValueError if it is of another type or shape."""
    array = arrays[key]
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{key} has shape {array.shape} of {array.dtype}, not {shape} of {np.dtype(dtype)}")


def checked_ids(arrays: Mapping[str, NDArray[np.generic]], key: str) -> Int64s:
    """Return the array `key`. Raises KeyError if it is not there, ValueError if it is not int64 [N], strictly ascending."""
    check_array(arrays, key, np.int64, (arrays[key].size,))
    ids = np.ascontiguousarray(arrays[key], np.int64)
    if np.any(ids[1:] <= ids[:-1]):
        raise ValueError(f"{key} are not strictly ascending")
    return ids


def make_counter(admission: Admission) -> OccurrenceCounter:
    """Return the counter that `admission` asks for."""
    if admission.max_element_size:
        return BloomCounter(admission.max_element_size, admission.false_positive_probability, admission.filter_freq)
    return ExactCounter(admission.max_waiting)


def load_counter(admission: Admission, arrays: Mapping[str, NDArray[np.generic]]) -> tuple[OccurrenceCounter, str]:
    """Return the counter with the state that another one saved, and "" or what of it could not be kept, because the rule changed since.

    Raises:
        KeyError: an array is missing.
        ValueError: an array has an impossible type, shape or content.
    """
    counter = make_counter(admission)
    if isinstance(counter, BloomCounter) and "bloom" not in arrays:
        exact = ExactCounter(admission.max_waiting)
        exact.load_state_arrays(arrays)
        counter.add(checked_ids(arrays, "ids"), np.ascontiguousarray(arrays["counts"], np.int64), int(arrays["last_steps"].max(initial=0)))
        return counter, ""
    if isinstance(counter, ExactCounter) and "bloom" in arrays:
        return counter, "the counts of ids waiting for admission: they are in a Bloom filter, and this feature spec counts exactly"
    try:
        counter.load_state_arrays(arrays)
    except OtherSize as error:
        return make_counter(admission), f"the counts of ids waiting for admission: {error}"
    return counter, ""


class OtherSize(ValueError):
    """The state of a Bloom filter is of another size than this configuration's."""


class ExactCounter(OccurrenceCounter):
    """Exact counts with the step of the last occurrence.

    It holds `max_waiting` ids, and for a moment a quarter more: then those seen longest ago go, of equal ones those counted least.
    """

    def __init__(self, max_waiting: int) -> None:
        """Start empty."""
        self._max_waiting = max_waiting
        self._reset()

    @override
    def add(self, ids: Int64s, counts: Int64s, step: int) -> None:
        slots = self._index.find(ids)
        new = slots == MISSING
        slots[new] = self._index.insert(ids[new])
        self._grow()
        self._counts[slots] += counts
        self._last_steps[slots] = step
        if len(self._index) > self._max_waiting + self._max_waiting // 4:
            self._forget_oldest()

    @override
    def get(self, ids: Int64s) -> Int64s:
        slots = self._index.find(ids)
        return np.where(slots == MISSING, 0, self._counts[slots])

    @override
    def forget(self, ids: Int64s) -> None:
        slots = self._index.remove(ids)
        self._counts[slots[slots != MISSING]] = 0

    @override
    def expire(self, last_step_kept: int) -> None:
        ids, slots = self._index.entries()
        self.forget(ids[self._last_steps[slots] < last_step_kept])

    @override
    def state_arrays(self) -> Arrays:
        ids, slots = self._index.entries()
        return {"ids": ids, "counts": self._counts[slots], "last_steps": self._last_steps[slots]}

    @override
    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        ids = checked_ids(arrays, "ids")
        for key in ("counts", "last_steps"):
            check_array(arrays, key, np.int64, ids.shape)
        self._reset()
        slots = self._index.insert(ids)
        self._grow()
        self._counts[slots] = arrays["counts"]
        self._last_steps[slots] = arrays["last_steps"]

    def _forget_oldest(self) -> None:
        ids, slots = self._index.entries()
        last_first = np.lexsort((ids, -self._counts[slots], -self._last_steps[slots]))
        self.forget(ids[last_first[self._max_waiting :]])

    def _reset(self) -> None:
        self._index = SlotIndex()
        self._counts = np.zeros(self._index.capacity, np.int64)
        self._last_steps = np.zeros(self._index.capacity, np.int64)

    def _grow(self) -> None:
        missing = self._index.capacity - self._counts.size
        if missing > 0:
            self._counts = np.pad(self._counts, (0, missing))
            self._last_steps = np.pad(self._last_steps, (0, missing))


# Cells of a filter, uint8 [H hashes, ...]: of 4 bits, two a byte, where counts are small (bits 1), of 8 bits else (bits 0).


@kernel
def _bloom_cell(key: np.int64, hash_number: int, num_cells: int) -> np.int64:
    """Return the cell of `key` in the part of the filter that belongs to one hash function."""
    seed = mix64(np.uint64(hash_number + 1) * _GOLDEN)
    return np.int64(mix64(np.uint64(key) ^ seed) % np.uint64(num_cells))


@kernel
def _cell_count(cells_HB: Bytes, h: int, cell: np.int64, packed: int) -> int:
    shift = 4 * (cell & packed)
    return (int(cells_HB[h, cell >> packed]) >> int(shift)) & (15 if packed else 255)


@kernel
def _bloom_count(cells_HB: Bytes, key: np.int64, num_cells: int, packed: int) -> int:
    """Return the count of `key`: the least of its cells."""
    count = 255
    for h in range(cells_HB.shape[0]):
        count = min(count, _cell_count(cells_HB, h, _bloom_cell(key, h, num_cells), packed))
    return count


@kernel
def _bloom_change(cells_HB: Bytes, key: np.int64, num_cells: int, packed: int, by: int) -> None:
    """Add `by`, which may be negative, to the cells of `key`. A cell that is full stays full: it does not know what it holds."""
    full = 15 if packed else 255
    for h in range(cells_HB.shape[0]):
        cell = _bloom_cell(key, h, num_cells)
        shift = 4 * (cell & packed)
        count = _cell_count(cells_HB, h, cell, packed)
        if count == full:
            continue
        byte = int(cells_HB[h, cell >> packed]) & ~(full << shift)
        cells_HB[h, cell >> packed] = np.uint8(byte | (max(0, min(full, count + by)) << shift))


@kernel
def _bloom_add(cells_HB: Bytes, ids: Int64s, counts: Int64s, num_cells: int, packed: int) -> int:
    """Add counts [N] to ids [N]; return how many of the ids the filter had not met."""
    num_new = 0
    for i in range(ids.size):
        num_new += _bloom_count(cells_HB, ids[i], num_cells, packed) == 0
        _bloom_change(cells_HB, ids[i], num_cells, packed, min(counts[i], 255))
    return num_new


@kernel
def _bloom_get(cells_HB: Bytes, ids: Int64s, counts: Int64s, num_cells: int, packed: int) -> None:
    """Add the count of each of ids [N] to counts [N]."""
    for i in range(ids.size):
        counts[i] += _bloom_count(cells_HB, ids[i], num_cells, packed)


@kernel
def _bloom_forget(cells_HB: Bytes, ids: Int64s, num_cells: int, packed: int) -> None:
    """One by one: taking the first off changes what the filter believes of the next."""
    for i in range(ids.size):
        _bloom_change(cells_HB, ids[i], num_cells, packed, -_bloom_count(cells_HB, ids[i], num_cells, packed))


class BloomCounter(OccurrenceCounter):
    """A counting Bloom filter that forgets: two filters of one size, of which the older is emptied and becomes the younger one.

    The younger counts; an id's count is the sum of both. When the younger has met `max_element_size` ids, the older is emptied and takes
    its place. So an id is remembered for at least `max_element_size` and at most twice as many ids met, however long the stream is, and
    the memory is fixed. Each filter is sized for half of the false positive probability, so that both together keep it.

    Measured on this code with filter_freq 2 and a probability of 0.01 (max_element_size 2,000, 10,000 and 100,000; 20, 10 and 3 draws of
    ids): of ids that occur once, 20 * max_element_size of them, 0.66, 0.56 and 0.53 % are admitted (worst draw 0.73 %), at 11.0 bytes an
    id. Of ids that occur a second time within max_element_size ids, 0.25 % are not admitted (worst draw 0.4 %) where half of all ids come
    back: their count was taken off with that of an admitted id that shares their cells.
    tests/unit/services/trainer/test_admission.py repeats it.

    Source: Fan et al. 2000, Summary Cache (counting filters); Bloom 1970 for the sizes; Yoon 2010, Aging Bloom Filter (two in turn).
    """

    def __init__(self, max_element_size: int, false_positive_probability: float, filter_freq: int) -> None:
        """Size the filters for `max_element_size` ids at `false_positive_probability`, and their cells for `filter_freq`, at most 255."""
        probability = false_positive_probability / 2
        num_cells = math.ceil(-max_element_size * math.log(probability) / math.log(2) ** 2)
        num_hashes = max(1, round(num_cells / max_element_size * math.log(2)))
        self._max_element_size = max_element_size
        self._packed = 1 if filter_freq <= _PACKED_COUNT else 0
        # One part per hash function: no id hits a cell twice, so that taking a count off never leaves less than nothing.
        self._num_cells = math.ceil(num_cells / num_hashes)
        shape = (num_hashes, -(-self._num_cells // 2) if self._packed else self._num_cells)
        self._younger_HB, self._older_HB = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        self._num_met = 0
        # The step of the younger one's first id.
        self._began = 0

    @property
    def num_bytes(self) -> int:
        """Memory of both filters."""
        return self._younger_HB.nbytes + self._older_HB.nbytes

    @override
    def add(self, ids: Int64s, counts: Int64s, step: int) -> None:
        part = 0
        while part < ids.size:
            if self._num_met >= self._max_element_size:
                self._forget_older()
            if self._num_met == 0:
                self._began = step
            # No batch, however large, fills a filter beyond its size.
            end = part + self._max_element_size - self._num_met
            self._num_met += _bloom_add(self._younger_HB, ids[part:end], counts[part:end], self._num_cells, self._packed)
            part = end

    @override
    def get(self, ids: Int64s) -> Int64s:
        counts = np.zeros(ids.size, np.int64)
        for cells_HB in (self._younger_HB, self._older_HB):
            _bloom_get(cells_HB, ids, counts, self._num_cells, self._packed)
        return counts

    @override
    def forget(self, ids: Int64s) -> None:
        """Take off what the filters believe of these ids, so ids that share all their cells may lose counts."""
        for cells_HB in (self._younger_HB, self._older_HB):
            _bloom_forget(cells_HB, ids, self._num_cells, self._packed)

    @override
    def expire(self, last_step_kept: int) -> None:
        """Empty the older filter once the younger has counted for the whole time: an id goes after one to two times `steps_to_live`."""
        if self._num_met and self._began < last_step_kept:
            self._forget_older()

    @override
    def state_arrays(self) -> Arrays:
        return {"bloom": np.stack([self._younger_HB, self._older_HB]), "bloom_met": np.array([self._num_met, self._began], np.int64)}

    @override
    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        shape = (2, *self._younger_HB.shape)
        if arrays["bloom"].shape != shape:
            raise OtherSize(f"the Bloom filter has shape {arrays['bloom'].shape}, this configuration needs {shape}")
        check_array(arrays, "bloom", np.uint8, shape)
        check_array(arrays, "bloom_met", np.int64, (2,))
        self._younger_HB, self._older_HB = (np.ascontiguousarray(part, np.uint8).copy() for part in arrays["bloom"])
        self._num_met, self._began = (int(number) for number in arrays["bloom_met"])

    def _forget_older(self) -> None:
        self._older_HB, self._younger_HB = self._younger_HB, self._older_HB
        self._younger_HB[:] = 0
        self._num_met = 0
