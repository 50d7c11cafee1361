"""JSON lines, read some thousand lines at a time. The type of a column is a matter of all its rows: a first reading finds it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import IO, Any

import pyarrow as pa

from services.trainer.event_files.places import EventFileError, Place
from services.trainer.event_files.reading import Columns, EventFile, Opens, check_names, reading

_BOM = b"\xef\xbb\xbf"
_BLOCK_ROWS = 8_192


def open_json_lines(path: object, opens: Opens, wanted: Sequence[str]) -> EventFile:
    """Read a file of JSON objects once, for the names and types of its columns.

    Raises:
        EventFileError: a line is no JSON object, or the cells of a column are of several types; names the row.
    """
    names: dict[str, None] = {}
    types: dict[str, Any] = {}
    for rows in _blocks(path, opens):
        names.update(dict.fromkeys(name for row in rows for name in row))
        for name in wanted:
            found = _array(path, name, rows, None).type
            types[name] = found if name not in types else _common(Place(path, name), types[name], found)
    check_names(path, list(names), wanted)

    def batches(columns: Sequence[str]) -> Iterator[Columns]:
        with reading(path):
            for rows in _blocks(path, opens):
                yield {name: _array(path, name, rows, types[name]) for name in columns}

    return EventFile(path, tuple(name for name in wanted if name in names), batches)


def _blocks(path: object, opens: Opens) -> Iterator[list[dict[str, Any]]]:
    number = 0
    with opens() as stream:
        lines = _lines(stream)
        while block := list(islice(lines, _BLOCK_ROWS)):
            rows = []
            for line in block:
                number += 1
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise EventFileError(f"{path}: row {number}: is no JSON object: {error}; write one object a line") from error
                if not isinstance(row, dict):
                    raise EventFileError(f"{path}: row {number}: is no JSON object; write one object a line")
                rows.append(row)
            yield rows


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines that are not blank; they may end with carriage returns."""
    for number, line in enumerate(stream):
        for part in (line.removeprefix(_BOM) if number == 0 else line).splitlines():
            if part.strip():
                yield part


def _array(path: object, name: str, rows: Sequence[dict[str, Any]], kind: Any) -> Any:
    try:
        return pa.array([row.get(name) for row in rows], kind)
    except (pa.ArrowException, OverflowError) as error:
        raise Place(path, name).refusal(f"its cells are of several types ({error}); write one type") from error


def _common(place: Place, one: Any, other: Any) -> Any:
    """Return the type that pyarrow gives cells of two types; raises EventFileError where it refuses them."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (one, other)):
        return pa.float64() if pa.types.is_floating(one) or pa.types.is_floating(other) else pa.uint64()
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(_common(place, one.value_type, other.value_type))
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            fields[field.name] = _common(place, fields[field.name], field.type) if field.name in fields else field.type
        return pa.struct(list(fields.items()))
    raise place.refusal(f"its cells are of several types ({one} and {other}); write one type")
