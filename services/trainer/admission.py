"""When an id earns a row: frequency filters in front of an embedding table. Pure.

An id counts its occurrences here until it is admitted; its count then moves to its row. Exact counting takes about 50 bytes an id; a
counting Bloom filter takes a fixed amount and over-counts some ids with a stated probability.
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
from services.common.ranker.tables.index import MISSING, Int64s, SlotIndex, mix64

Arrays = dict[str, NDArray[np.generic]]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The rule by which an id earns a row."""

    filter_freq: int = 1
    """Occurrences after which an id gets its own row; 0 and 1 admit at first sight."""
    max_element_size: int = 0
    """0 counts exactly; above, a counting Bloom filter sized for this many un-admitted ids."""
    false_positive_probability: float = 0.01
    """Of the Bloom filter, when it holds max_element_size ids."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.filter_freq < 0 or self.max_element_size < 0:
            raise ValueError("filter_freq and max_element_size must not be negative")
        if not 0 < self.false_positive_probability < 1:
            raise ValueError(f"false_positive_probability {self.false_positive_probability} is not between 0 and 1")


class OccurrenceCounter(Protocol):
    """Counts occurrences of ids that have no row yet."""

    def add(self, ids: Int64s, counts: Int64s, step: int) -> None:
        """Add counts [N] to ids [N] (distinct)."""

    def get(self, ids: Int64s) -> Int64s:
        """Return the count of each of ids [N]; a Bloom filter may return more, never less."""

    def forget(self, ids: Int64s) -> None:
        """Drop the counts of ids [N] (distinct): they have rows now."""

    def expire(self, last_step_kept: int) -> None:
        """Drop the ids last seen before `last_step_kept`, where that is known."""

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
        return BloomCounter(admission.max_element_size, admission.false_positive_probability)
    return ExactCounter()


class ExactCounter(OccurrenceCounter):
    """Exact counts with the step of the last occurrence."""

    def __init__(self) -> None:
        """Start empty."""
        self._index = SlotIndex()
        self._counts = np.zeros(self._index.capacity, np.int64)
        self._last_steps = np.zeros(self._index.capacity, np.int64)

    @override
    def add(self, ids: Int64s, counts: Int64s, step: int) -> None:
        slots = self._index.find(ids)
        new = slots == MISSING
        slots[new] = self._index.insert(ids[new])
        self._grow()
        self._counts[slots] += counts
        self._last_steps[slots] = step

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
        self._index = SlotIndex()
        slots = self._index.insert(ids)
        self._counts = np.zeros(self._index.capacity, np.int64)
        self._last_steps = np.zeros(self._index.capacity, np.int64)
        self._counts[slots] = arrays["counts"]
        self._last_steps[slots] = arrays["last_steps"]

    def _grow(self) -> None:
        missing = self._index.capacity - self._counts.size
        if missing:
            self._counts = np.pad(self._counts, (0, missing))
            self._last_steps = np.pad(self._last_steps, (0, missing))


@kernel
def _bloom_cell(key: np.int64, hash_number: int, num_cells: int) -> np.int64:
    """Return the cell of `key` in the part of the filter that belongs to one hash function."""
    seed = mix64(np.uint64(hash_number + 1) * _GOLDEN)
    return np.int64(mix64(np.uint64(key) ^ seed) % np.uint64(num_cells))


@kernel
def _bloom_add(cells_HC: Int64s, ids: Int64s, counts: Int64s) -> None:
    num_hashes, num_cells = cells_HC.shape
    for i in range(ids.size):
        for h in range(num_hashes):
            cells_HC[h, _bloom_cell(ids[i], h, num_cells)] += counts[i]


@kernel
def _bloom_get(cells_HC: Int64s, ids: Int64s, counts: Int64s) -> None:
    num_hashes, num_cells = cells_HC.shape
    for i in range(ids.size):
        counts[i] = cells_HC[0, _bloom_cell(ids[i], 0, num_cells)]
        for h in range(1, num_hashes):
            counts[i] = min(counts[i], cells_HC[h, _bloom_cell(ids[i], h, num_cells)])


@kernel
def _bloom_forget(cells_HC: Int64s, ids: Int64s) -> None:
    """One by one: taking the first off changes what the filter believes of the next."""
    count = np.empty(1, np.int64)
    for i in range(ids.size):
        _bloom_get(cells_HC, ids[i : i + 1], count)
        _bloom_add(cells_HC, ids[i : i + 1], -count)


class BloomCounter(OccurrenceCounter):
    """A counting Bloom filter. It does not know when an id was last seen, so it expires nothing.

    Source: Fan et al. 2000, Summary Cache (counting filters); Bloom 1970 for the sizes.
    """

    def __init__(self, max_element_size: int, false_positive_probability: float) -> None:
        """Size the filter for `max_element_size` ids at `false_positive_probability`."""
        num_cells = math.ceil(-max_element_size * math.log(false_positive_probability) / math.log(2) ** 2)
        num_hashes = max(1, round(num_cells / max_element_size * math.log(2)))
        # One part per hash function: no id hits a cell twice, so that taking a count off never leaves less than nothing.
        self._cells_HC = np.zeros((num_hashes, math.ceil(num_cells / num_hashes)), np.int64)

    @override
    def add(self, ids: Int64s, counts: Int64s, step: int) -> None:
        _bloom_add(self._cells_HC, ids, counts)

    @override
    def get(self, ids: Int64s) -> Int64s:
        counts = np.empty(ids.size, np.int64)
        _bloom_get(self._cells_HC, ids, counts)
        return counts

    @override
    def forget(self, ids: Int64s) -> None:
        """Take off what the filter believes of these ids, so ids that share all their cells may lose counts."""
        _bloom_forget(self._cells_HC, ids)

    @override
    def expire(self, last_step_kept: int) -> None:
        """Do nothing: a Bloom filter does not know which ids were seen when."""

    @override
    def state_arrays(self) -> Arrays:
        return {"bloom": self._cells_HC.copy()}

    @override
    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        cells = np.ascontiguousarray(arrays["bloom"], np.int64)
        if cells.shape != self._cells_HC.shape:
            raise ValueError(f"the Bloom filter has shape {cells.shape}, this configuration needs {self._cells_HC.shape}")
        self._cells_HC = cells.copy()
