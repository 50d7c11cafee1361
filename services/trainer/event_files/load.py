"""From the bytes of one file to its columns, as pyarrow arrays: Parquet, ORC, Arrow, CSV and JSON lines.

The content decides what a file is, not its name: Hive writes `000000_0`, others `.pq` or `.PARQUET`. Texts may be compressed. A format that
is known and not read is refused by its name.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.parquet as pq
from pyarrow import orc

from services.trainer.event_files.places import EventFileError, Place

_BOM = b"\xef\xbb\xbf"
_DELIMITERS = (",", "\t", ";", "|")
_BLOCK_BYTES = 64 << 20
_UNREAD = {
    b"PARE": "an encrypted Parquet file",
    b"PK\x03\x04": "a zip archive (or Excel's .xlsx)",
    b"Obj\x01": "an Avro file",
    b"\x89HDF": "an HDF5 file",
    b"SQLite format 3": "an SQLite database",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
    b"sNaPpY": "framed snappy",
    b"\xff\x06\x00\x00sNaPpY": "framed snappy",
}
_HADOOP_SUFFIXES = {".snappy", ".deflate", ".lzo", ".lz4"}


def load(path: Path, wanted: Sequence[str]) -> dict[str, Any]:
    """Return those of the wanted columns that a file has, each a pyarrow array, and all of one length.

    Raises:
        EventFileError: the file cannot be read, is of another format, or names a column twice; or a row has another number of cells.
    """
    with _reading(path):
        with path.open("rb") as file:
            head = file.read(16)
        if not head:
            raise EventFileError(f"{path}: is empty")
        named = any(path.name.lower().endswith(suffix) for suffix in (".parquet", ".pq", ".parq"))
        if head.startswith(b"PAR1"):
            return _of_parquet(path, wanted)
        if head.startswith(b"ORC"):
            return _picked(path, orc.ORCFile(path).read, orc.ORCFile(path).schema.names, wanted)
        if head.startswith((b"ARROW1", b"FEA1")):
            return _picked(path, lambda columns: feather.read_table(path, columns=columns), None, wanted)
        if named:
            raise EventFileError(f"{path}: is no Parquet file: it does not begin with PAR1; write it again")
        return load_text(path, _unpacked(path, head), wanted)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except EventFileError:
        raise
    except (
        pa.ArrowException,
        csv.Error,
        OSError,
        ValueError,
        EOFError,
        KeyError,
        zlib.error,
        lzma.LZMAError,
        OverflowError,
        RecursionError,
    ) as error:
        what = " ".join(str(error).split())[:300]
        raise EventFileError(f"{path}: cannot be read ({what}); write it again, whole and with common types") from error


def _of_parquet(path: Path, wanted: Sequence[str]) -> dict[str, Any]:
    # Spark's old timestamps (INT96) would wrap around outside 1677 to 2262 as nanoseconds.
    with pq.ParquetFile(path, coerce_int96_timestamp_unit="us") as file:
        return _picked(path, file.read, file.schema_arrow.names, wanted)


def _picked(path: Path, read: Any, names: Sequence[str] | None, wanted: Sequence[str]) -> dict[str, Any]:
    if names is None:
        names = feather.read_table(path).schema.names
    _check_names(path, names, wanted)
    present = [name for name in wanted if name in names]
    table = read(columns=present) if present else None
    return {name: table.column(name) for name in present} if table is not None else {}


def _check_names(path: Path, names: Sequence[str], wanted: Sequence[str]) -> None:
    twice = next((name for name in wanted if list(names).count(name) > 1), None)
    if twice is not None:
        raise EventFileError(f"{path}: has two columns {twice!r}; leave one of them out")
    if not set(names) & set(wanted):
        shown = ", ".join(repr(name[:40]) for name in list(names)[:8])
        raise EventFileError(
            f"{path}: names none of the columns {', '.join(wanted)}, but {shown or 'none at all'}; rename its columns, "
            "or write the file with their names (CSV: with a header)"
        )


def _unpacked(path: Path, head: bytes) -> bytes:
    if head.startswith(b"\x1f\x8b"):
        return _inner(path, gzip.decompress(path.read_bytes()))
    if head.startswith(b"BZh"):
        return _inner(path, bz2.decompress(path.read_bytes()))
    if head.startswith(b"\xfd7zXZ"):
        return _inner(path, lzma.decompress(path.read_bytes()))
    if head.startswith((b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")):
        with pa.input_stream(str(path), compression="zstd" if head[0] == 0x28 else "lz4") as stream:
            return _inner(path, stream.read())
    unread = next((what for magic, what in _UNREAD.items() if head.startswith(magic)), None)
    if unread is None and path.suffix.lower() in _HADOOP_SUFFIXES:
        unread = f"compressed as Hadoop does it ({path.suffix})"
    if unread is not None:
        raise EventFileError(f"{path}: is {unread}, which is not read; write Parquet, or CSV in UTF-8 (plain, .gz, .zst, .bz2 or .xz)")
    return path.read_bytes()


def _inner(path: Path, data: bytes) -> bytes:
    if data.startswith((b"PAR1", b"ORC", b"ARROW1")):
        raise EventFileError(f"{path}: is a compressed {data[:4].decode()} file, which is compressed inside already; unpack it first")
    return data


def load_text(path: Path, data: bytes, wanted: Sequence[str]) -> dict[str, Any]:
    """As `load`, of the content of a text file: CSV or JSON lines. `path` is what errors name."""
    data = data.removeprefix(_BOM)
    if b"\x00" in data[:4096]:
        raise EventFileError(f"{path}: is no text and no format that is read; write Parquet, ORC, CSV or JSON lines")
    if data.lstrip()[:1] == b"[":
        raise EventFileError(f"{path}: is one JSON array; write one JSON object a line")
    with _reading(path):
        return _of_json_lines(path, data, wanted) if data.lstrip()[:1] == b"{" else _of_csv(path, data, wanted)


def _of_json_lines(path: Path, data: bytes, wanted: Sequence[str]) -> dict[str, Any]:
    rows = []
    for number, line in enumerate(filter(bytes.strip, data.splitlines())):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EventFileError(f"{path}: row {number + 1}: is no JSON object: {error}; write one object a line") from error
        if not isinstance(row, dict):
            raise EventFileError(f"{path}: row {number + 1}: is no JSON object; write one object a line")
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    _check_names(path, names, wanted)
    columns = {}
    for name in wanted:
        if name in names:
            try:
                columns[name] = pa.array([row.get(name) for row in rows])
            except (pa.ArrowException, OverflowError) as error:
                raise Place(path, name).refusal(f"its cells are of several types ({error}); write one type") from error
    return columns


def _of_csv(path: Path, data: bytes, wanted: Sequence[str]) -> dict[str, Any]:
    first = re.split(rb"[\r\n]", data, maxsplit=1)[0]
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
    _check_names(path, names, wanted)
    escapes = _escapes_quotes(data, delimiter)
    # Columns that nobody wants may be called alike; pyarrow wants each name once.
    columns = [name if name in wanted else f"{name}#{index}" for index, name in enumerate(names)]
    table = pacsv.read_csv(
        pa.BufferReader(data),
        read_options=pacsv.ReadOptions(column_names=columns, skip_rows=1, use_threads=False, block_size=min(len(data), _BLOCK_BYTES) + 1),
        parse_options=pacsv.ParseOptions(
            delimiter=delimiter, double_quote=not escapes, escape_char="\\" if escapes else False, newlines_in_values=True
        ),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), include_columns=[name for name in columns if name in wanted]
        ),
    )
    return {name: table.column(name) for name in table.column_names}


def _escapes_quotes(data: bytes, delimiter: str) -> bool:
    r"""Return whether a file writes a quote inside quotes as \", as Spark does, and not as "".

    A well-formed file of the other kind has no \" that anything but a quote, a delimiter or an end follows.
    """
    return b'\\"' in data and re.search(rb'\\"[^"\r\n' + re.escape(delimiter).encode() + rb"]", data) is not None
