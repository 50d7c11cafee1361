"""Attributes of users, items and requests from files: which columns the declared features need, and what their cells are.

A column of the events file is named as the field (`city`) or with its side (`user:city`). A file of users or items has the entity's id, its
attributes, and perhaps `time`, from when on they held; without that column they held from the start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from services.common.platform.errors import InvalidInput
from services.common.ranker.declared.plan import Attributes, Plan, Wanted
from services.trainer.attribute_history import ALWAYS_MS, Versions
from services.trainer.event_files.categories import quoted_list
from services.trainer.event_files.columns import NULL_WORDS, is_textual, plain, read_ids, read_values, texts
from services.trainer.event_files.load import AS_HERE, Names, open_named
from services.trainer.event_files.locate import find_files
from services.trainer.event_files.places import EventFileError, Place
from services.trainer.event_files.reading import EventFile
from services.trainer.event_files.times import facts_of, read_times, ticks_ms

# What the history knows of an item without any column of attributes.
ITEM_CATEGORIES = "categories"
_MAX_CELL_CHARACTERS = 64 << 10


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one side that the features read, each with all the ways in which it is read."""

    side: str
    readers: Mapping[str, tuple[Wanted, ...]]

    @classmethod
    def of(cls, plan: Plan, side: str) -> Fields:
        """Return those of a plan; the items' categories are no column of attributes."""
        readers: dict[str, tuple[Wanted, ...]] = {}
        for one in plan.wanted:
            if one.side == side and (side, one.field) != ("item", ITEM_CATEGORIES):
                readers[one.field] = (*readers.get(one.field, ()), one)
        return cls(side, readers)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names that columns of an events file may have."""
        return tuple(name for field in self.readers for name in (f"{self.side}:{field}", field))


def fields_in_events(plan: Plan, *, users_apart: bool, items_apart: bool) -> tuple[Fields, ...]:
    """Return the fields that columns of the events file hold.

    Args:
        plan: the spec's.
        users_apart: a file of users holds theirs.
        items_apart: a file of items holds theirs.
    """
    sides = ("context", *(() if users_apart else ("user",)), *(() if items_apart else ("item",)))
    return tuple(fields for fields in (Fields.of(plan, side) for side in sides) if fields.readers)


def rows_of_events(path: object, columns: Mapping[str, Any], sides: Sequence[Fields], first_row: int = 0) -> dict[str, list[Attributes]]:
    """Return, by side, the attributes in a batch of rows of an events file.

    Args:
        path: of the file, for errors.
        columns: of the file, by name.
        sides: what to read.
        first_row: how many rows of the file stand before the batch.
    Raises:
        EventFileError: a column is missing, two sides mean the same one, or a cell has another type than the features read.
    """
    bare = [field for fields in sides for field in fields.readers if f"{fields.side}:{field}" not in columns]
    twice = next((field for field in bare if bare.count(field) > 1), None)
    if twice is not None and twice in columns:
        raise EventFileError(f"{path}: column {twice!r}: features read it of two sides; name the columns user:{twice}, item:{twice}, …")
    found = {}
    for fields in sides:
        names = {field: _column_name(path, fields.side, field, columns) for field in fields.readers}
        cells = {field: read_cells(columns[name], Place(path, name, first_row), fields.readers[field]) for field, name in names.items()}
        found[fields.side] = _rows(cells)
    return found


def _column_name(path: object, side: str, field: str, columns: Mapping[str, Any]) -> str:
    for name in (f"{side}:{field}", field):
        if name in columns:
            return name
    instead = f" or give a file with it by --{side}s" if side != "context" else ""
    missing = f"column {field!r} (or '{side}:{field}') is missing"
    raise EventFileError(f"{path}: {missing}, and a feature of the spec reads {side}:{field}; write the column{instead}")


def read_versions(path: str | Path, id_column: str, fields: Fields, time_unit: str | None, names: Names = AS_HERE) -> Versions:
    """Return the attributes in a file of users or items, or in a folder of them.

    Raises:
        EventFileError: it lacks a column, or holds what cannot be read without guessing.
    """
    written: list[tuple[str, int, Attributes]] = []
    for found in find_files(path):
        file = open_named(found.path, (id_column, "time", *fields.readers), names, or_ours=True)
        folders = {names.meant(name): value for name, value in found.partitions.items()}
        missing = next((name for name in (id_column, *fields.readers) if name not in file.names and name not in folders), None)
        if missing is not None:
            raise EventFileError(f"{found.path}: column {missing!r} is missing; wanted: {', '.join((id_column, *fields.readers))}[, time]")
        written += _versions_of(file, folders, id_column, fields, time_unit)
    return Versions(sorted(written, key=lambda one: one[1]))


def _versions_of(
    file: EventFile, folders: Mapping[str, str | None], id_column: str, fields: Fields, time_unit: str | None
) -> Iterator[tuple[str, int, Attributes]]:
    """Yield (id, time, attributes) of each row; `folders`: the columns that the file's folders carry."""
    at, facts = 0, None
    if "time" in file.names:
        facts = facts_of((columns["time"] for columns in file.batches(["time"])), Place(file.path, "time"))
    for batch in file.batches(file.names):
        num_rows = len(next(iter(batch.values())))
        columns = {name: pa.repeat(pa.scalar(value, pa.string()), num_rows) for name, value in folders.items()} | batch
        ids = read_ids(columns[id_column], Place(file.path, id_column, at)).texts()
        times = [ALWAYS_MS] * len(ids)
        if "time" in columns:
            times = read_times(plain(columns["time"]), Place(file.path, "time", at), time_unit, facts)[0].tolist()
        read = {field: read_cells(columns[field], Place(file.path, field, at), readers) for field, readers in fields.readers.items()}
        yield from zip(ids, times, _rows(read), strict=True)
        at += len(ids)


def read_cells(column: Any, place: Place, readers: Sequence[Wanted]) -> list[Any]:
    """Return a column's cells as values of attributes; None where a cell is empty or spells a missing value.

    Numbers may be written as text, since CSV has nothing else; a list may be JSON's or Python's.

    Raises:
        EventFileError: a cell has another type than one of the readers reads; names the row.
    """
    column = plain(column)
    if pa.types.is_timestamp(column.type):
        # Downwards, as a request's are; a cast refuses what is finer than a millisecond.
        ticks_N = pc.fill_null(column.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
        column = pa.array(ticks_ms(ticks_N, column.type.unit), mask=column.is_null().to_numpy(zero_copy_only=False))
    elif pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms")).cast(pa.int64())
    is_number = all(one.cast == "numbers" and one.width == 1 for one in readers)
    if is_number and (is_textual(column.type) or pa.types.is_decimal(column.type) or pa.types.is_null(column.type)):
        return [None if np.isnan(value) else value for value in read_values(column, place).tolist()]
    cells = _text_cells(column, place) if is_textual(column.type) else _typed_cells(column, place)
    if is_textual(column.type) and any(one.cast == "numbers" and one.width == 1 for one in readers):
        cells = [None if np.isnan(value) else value for value in read_values(column, place).tolist()]
    for one in readers:
        _check(cells, place, one)
    return cells


def _text_cells(column: Any, place: Place) -> list[Any]:
    encoded = texts(column, place).dictionary_encode()
    distinct = [_text_cell(text) for text in encoded.dictionary.to_pylist()]
    codes = pc.fill_null(encoded.indices, -1).to_pylist()
    return [None if code < 0 else distinct[code] for code in codes]


def _text_cell(text: str) -> Any:
    stripped = text.strip()
    if not stripped or stripped in NULL_WORDS:
        return None
    if stripped[0] == "[" and stripped[-1] == "]" and len(stripped) <= _MAX_CELL_CHARACTERS:
        try:
            listed = json.loads(stripped)
        except (ValueError, RecursionError):
            return quoted_list(stripped) or text
        return listed if isinstance(listed, list) else text
    return text


def _typed_cells(column: Any, place: Place) -> list[Any]:
    kind = column.type
    try:
        cells: list[Any] = column.to_pylist()
    except (ValueError, OverflowError) as error:
        raise place.refusal(f"{kind} holds what Python cannot ({error}); write numbers, texts, or lists of those") from error
    if pa.types.is_map(kind):
        cells = [None if cell is None else dict(cell) for cell in cells]
    odd = (pa.types.is_map, pa.types.is_struct, pa.types.is_decimal, pa.types.is_floating)
    return [_said(cell) for cell in cells] if any(is_of(kind) for is_of in odd) else cells


def _said(cell: Any) -> Any:
    """Return a cell without what only says that there is none: NaN, and fields of a struct that other rows have; inner maps as mappings."""
    if isinstance(cell, list) and cell and isinstance(cell[0], tuple):
        cell = dict(cell)
    if isinstance(cell, dict):
        return {key: said for key, value in cell.items() if (said := _said(value)) is not None and said != []}
    if isinstance(cell, Decimal):
        return int(cell) if cell == int(cell) else float(cell)
    return None if cell != cell else cell


def _check(cells: Sequence[Any], place: Place, reader: Wanted) -> None:
    try:
        reader.column([{reader.field: cell} for cell in cells])
    except InvalidInput:
        for row, cell in enumerate(cells):
            try:
                reader.column([{reader.field: cell}])
            except InvalidInput as error:
                raise place.fault(row, cell, f"cannot be read as {reader.side}:{reader.field}: {error}") from error
        raise


def _rows(cells: Mapping[str, Sequence[Any]]) -> list[Attributes]:
    columns = list(cells.values())
    return [{field: value for field, value in zip(cells, row, strict=True) if value is not None} for row in zip(*columns, strict=True)]
