"""CSV, read block by block: its header, its delimiter, and how it writes a quote inside quotes."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from services.trainer.event_files.places import EventFileError
from services.trainer.event_files.reading import BATCH_ROWS, Columns, EventFile, Opens, check_names, reading

_BOM = b"\xef\xbb\xbf"
_DELIMITERS = (",", "\t", ";", "|")
_BLOCK_BYTES = 2 << 20
_LARGEST_BLOCK_BYTES = 64 << 20
"""A row may not be longer."""
# What pyarrow says of a row, or a header, that is longer than a block.
_TOO_LONG = ("straddles two block boundaries", "header is larger than block size")
_SCANNED_BYTES = 1 << 20
_HEADER_BYTES = 16 << 20


def open_csv(path: object, opens: Opens, wanted: Sequence[str]) -> EventFile:
    """Read the header of a CSV file, and find out how it writes quotes.

    Raises:
        EventFileError: it has no header with a wanted column, or names one twice.
    """
    first = _first_line(opens)
    if b"\x01" in first:
        raise EventFileError(f"{path}: is a text file of Hive, without column names; write the table STORED AS PARQUET or ORC")
    try:
        header = first.decode()
    except UnicodeDecodeError as error:
        raise EventFileError(f"{path}: its first line is no UTF-8; write text as UTF-8") from error
    delimiter, names = max(
        ((sign, [name.strip() for name in next(csv.reader([header], delimiter=sign), [])]) for sign in _DELIMITERS),
        key=lambda split: len(set(wanted) & set(split[1])),
    )
    check_names(path, names, wanted)
    parsing = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    if _escapes_quotes(opens, delimiter):
        parsing = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, double_quote=False, escape_char="\\")
    # Columns that nobody wants may be called alike; pyarrow wants each name once.
    unique = [name if name in wanted else f"{name}#{index}" for index, name in enumerate(names)]

    def batches(columns: Sequence[str]) -> Iterator[Columns]:
        with reading(path):
            yield from _batches(opens, unique, columns, parsing)

    return EventFile(path, tuple(name for name in wanted if name in names), batches)


def _batches(opens: Opens, names: Sequence[str], columns: Sequence[str], parsing: Any) -> Iterator[Columns]:
    done = 0
    for block_bytes in (_BLOCK_BYTES, _LARGEST_BLOCK_BYTES):
        at = 0
        try:
            for batch in _blocks(opens, names, columns, parsing, block_bytes):
                for start in range(max(done - at, 0), batch.num_rows, BATCH_ROWS):
                    part = batch.slice(start, BATCH_ROWS)
                    done = at + start + part.num_rows
                    yield {name: part.column(name) for name in columns}
                at += batch.num_rows
            break
        except pa.ArrowInvalid as error:
            if not any(said in str(error) for said in _TOO_LONG) or block_bytes == _LARGEST_BLOCK_BYTES:
                raise
            # Again with larger blocks, from where this reading ended.
    if not done:
        yield {name: pa.array([], pa.string()) for name in columns}


def _blocks(opens: Opens, names: Sequence[str], columns: Sequence[str], parsing: Any, block_bytes: int) -> Iterator[Any]:
    with opens() as stream:
        yield from pacsv.open_csv(
            pa.PythonFile(stream, mode="r"),
            read_options=pacsv.ReadOptions(column_names=list(names), skip_rows=1, use_threads=False, block_size=block_bytes),
            parse_options=parsing,
            convert_options=pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), include_columns=list(columns)),
        )


def _first_line(opens: Opens) -> bytes:
    data = b""
    with opens() as stream:
        while len(data) < _HEADER_BYTES and not re.search(rb"[\r\n]", data) and (more := stream.read(_SCANNED_BYTES)):
            data += more
    return re.split(rb"[\r\n]", data.removeprefix(_BOM), maxsplit=1)[0]


def _escapes_quotes(opens: Opens, delimiter: str) -> bool:
    r"""Return whether a file writes a quote inside quotes as \", as Spark does, and not as "".

    A well-formed file of the other kind has no \" that anything but a quote, a delimiter or an end follows.
    """
    pattern, before = re.compile(rb'\\"[^"\r\n' + re.escape(delimiter).encode() + rb"]"), b""
    with opens() as stream:
        while more := stream.read(_SCANNED_BYTES):
            data = before + more
            if b'\\"' in data and pattern.search(data):
                return True
            before = data[-2:]
    return False
