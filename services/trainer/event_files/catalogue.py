"""The categories of every item of a history, gathered while its files are read in any order of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.common.events.limits import check_categories
from services.trainer.event_files.categories import UnreadableCategories, category_names, separator_of
from services.trainer.event_files.columns import cell_of
from services.trainer.event_files.places import EventFileError, Place


@dataclass(frozen=True, slots=True)
class _Said:
    """The latest cell that says anything of an item, and where it stands."""

    cell: object
    place: Place


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """A cell that Python has no value for: an error unless a later one takes its place."""

    error: EventFileError


class Catalogue:
    """Items in the order of their first event; of each, what its last row that says any categories says."""

    def __init__(self) -> None:
        # By the item's code: when it first appeared, as (time, row of all rows), and when its latest cell was written.
        self._first_ms, self._first_row, self._last_ms = (np.zeros(0, np.int64) for _ in range(3))
        self._said: list[_Said | None] = []

    def add(self, items_N: Any, times_N: Any, first_row: int, categories: Any, place: Place) -> None:
        """Take rows in, in the order of the files.

        Args:
            items_N: codes of their items.
            times_N: Unix ms.
            first_row: how many rows of all files stand before them.
            categories: pyarrow array as `columns.category_column` gives it; None: the file has none.
            place: of the column.
        """
        if not len(items_N):
            return
        self._grow(int(items_N.max()) + 1)
        order_N = np.argsort(times_N, kind="stable")
        in_order_N = items_N[order_N]
        codes, at = np.unique(in_order_N, return_index=True)
        rows = order_N[at]
        earlier = times_N[rows] < self._first_ms[codes]
        codes, rows = codes[earlier], rows[earlier]
        self._first_ms[codes], self._first_row[codes] = times_N[rows], first_row + rows
        if categories is not None:
            self._note_cells(in_order_N, order_N, times_N, categories, place)

    def _note_cells(self, in_order_N: Any, order_N: Any, times_N: Any, categories: Any, place: Place) -> None:
        says_N = categories.is_valid().to_numpy(zero_copy_only=False)[order_N]
        said_N, order_N = in_order_N[says_N][::-1], order_N[says_N][::-1]
        codes, at = np.unique(said_N, return_index=True)
        rows = order_N[at]
        later = times_N[rows] >= self._last_ms[codes]
        for code, row in zip(codes[later].tolist(), rows[later].tolist(), strict=True):
            cell: object
            try:
                cell = cell_of(categories, row, place)
            except EventFileError as error:
                cell = _Unreadable(error)
            self._said[code] = _Said(cell, Place(place.file, place.column, place.first_row + row))
        self._last_ms[codes[later]] = times_N[rows[later]]

    def _grow(self, size: int) -> None:
        more = size - len(self._said)
        if more <= 0:
            return
        more = max(more, len(self._said))
        self._said += [None] * more
        never, always = np.full(more, np.iinfo(np.int64).max), np.full(more, -1, np.int64)
        self._first_ms = np.concatenate((self._first_ms, never))
        self._first_row = np.concatenate((self._first_row, never))
        self._last_ms = np.concatenate((self._last_ms, always))

    def categories(self, items: Sequence[str], separator: str | None) -> tuple[dict[str, tuple[str, ...]], str]:
        """Return the categories of every item, in the order of first appearance, and the separator of texts.

        Args:
            items: by code.
            separator: None: recognised.
        Raises:
            EventFileError: a cell cannot be read without guessing.
        """
        count = len(items)
        order = np.lexsort((self._first_row[:count], self._first_ms[:count])).tolist()
        for code in order:
            said = self._said[code]
            if said is not None and isinstance(said.cell, _Unreadable):
                raise said.cell.error
        if separator is None:
            separator = separator_of(said.cell for code in order if (said := self._said[code]) is not None)
        found: dict[str, tuple[str, ...]] = {}
        for code in order:
            said = self._said[code]
            try:
                found[items[code]] = category_names(said.cell, separator) if said is not None else ()
                check_categories("names categories outside their bounds", found[items[code]], UnreadableCategories)
            except UnreadableCategories as error:
                assert said is not None
                raise said.place.fault(0, said.cell, str(error)) from error
        return found, separator
