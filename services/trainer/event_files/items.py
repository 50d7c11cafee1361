"""What files say of items beside their attributes: categories and titles; the last row that says any counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from services.common.events.limits import check_categories
from services.trainer.event_files.categories import UnreadableCategories, category_names, separator_of
from services.trainer.event_files.columns import category_column, cell_of, is_textual, plain, read_ids, texts
from services.trainer.event_files.load import Names, open_named
from services.trainer.event_files.locate import find_files
from services.trainer.event_files.places import Place

ITEM_ID, CATEGORIES, TITLE = "item_id", "categories", "title"


def read_item_categories(path: str | Path, names: Names, separator: str | None) -> dict[str, tuple[str, ...]]:
    """Return the categories in a file of items, of those items that it names any of; nothing when it has no such column.

    Args:
        path: of the file, or of a folder.
        names: what it calls its columns.
        separator: between the names in a text; None: recognised.
    Raises:
        EventFileError: a cell names no categories.
    """
    said: dict[str, tuple[object, Place, int]] = {}
    for place, ids, cells in _of_items(path, CATEGORIES, names):
        column = category_column(cells, place)
        said |= {item_id: (cell_of(column, row, place), place, row) for row, item_id in enumerate(ids) if column[row].is_valid}
    separated = separator_of(cell for cell, _, _ in said.values()) if separator is None else separator
    found = {}
    for item_id, (cell, place, row) in said.items():
        try:
            found[item_id] = category_names(cell, separated)
            check_categories("names categories outside their bounds", found[item_id], UnreadableCategories)
        except UnreadableCategories as error:
            raise place.fault(row, cell, str(error)) from error
    return found


def read_titles(path: str | Path, names: Names) -> dict[str, str]:
    """Return the titles in a file of items, or of events; nothing when it has no such column.

    Raises:
        EventFileError: the column holds no texts.
    """
    found: dict[str, str] = {}
    for place, ids, cells in _of_items(path, TITLE, names):
        column = plain(cells)
        if not is_textual(column.type):
            raise place.refusal(f"{column.type} is no title; write a column of texts")
        said = pc.fill_null(texts(column, place), "").to_pylist()
        found |= {item_id: title for item_id, title in zip(ids, said, strict=True) if title.strip()}
    return found


def read_item_ids(path: str | Path, names: Names) -> list[str]:
    """Return the ids of a file of items, each once, in the file's order."""
    return list(dict.fromkeys(item_id for _, ids, _ in _of_items(path, ITEM_ID, names) for item_id in ids))


def _of_items(path: str | Path, column: str, names: Names) -> Iterator[tuple[Place, list[str], Any]]:
    """Yield (place of the column, item ids, cells) of each batch of the files that have the column."""
    for found in find_files(path):
        file, at = open_named(found.path, (ITEM_ID, column), names, or_ours=True), 0
        if ITEM_ID not in file.names or column not in file.names:
            continue
        for columns in file.batches(file.names):
            ids = read_ids(columns[ITEM_ID], Place(found.path, names.of(ITEM_ID), at)).texts()
            yield Place(found.path, names.of(column), at), ids, columns[column]
            at += len(ids)
