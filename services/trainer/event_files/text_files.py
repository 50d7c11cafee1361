"""Files of text: how they are packed, and whether they are CSV or JSON lines."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa

from services.trainer.event_files.delimited import open_csv
from services.trainer.event_files.json_lines import open_json_lines
from services.trainer.event_files.places import EventFileError
from services.trainer.event_files.reading import EventFile, Opens, reading
from services.trainer.event_files.sources import DataFile, opened

_BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 64 << 10
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


@contextmanager
def unpacked(path: DataFile, head: bytes) -> Iterator[IO[bytes]]:
    """Open a file of text; it is unpacked as it is read.

    Args:
        path: of the file.
        head: its first 16 bytes.
    Raises:
        EventFileError: it is packed in a way that is not read, or is no text.
    """
    unread = next((what for magic, what in _UNREAD.items() if head.startswith(magic)), None)
    unpack = next((unpack for magic, unpack in _PACKED.items() if head.startswith(magic)), None)
    if unread is None and unpack is None and path.suffix.lower() in _HADOOP_SUFFIXES:
        unread = f"compressed as Hadoop does it ({path.suffix})"
    if unread is not None:
        raise EventFileError(f"{path}: is {unread}, which is not read; write Parquet, or CSV in UTF-8 (plain, .gz, .zst, .bz2 or .xz)")
    with opened(path) as file:
        if unpack is None:
            yield file
        else:
            with unpack(file) as stream:
                yield stream


def _by_arrow(compression: str) -> Callable[[IO[bytes]], Any]:
    def unpack(file: IO[bytes]) -> Any:
        return io.BufferedReader(pa.input_stream(pa.PythonFile(file, mode="r"), compression=compression))

    return unpack


_PACKED: Mapping[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": _by_arrow("zstd"),
    b"\x04\x22\x4d\x18": _by_arrow("lz4"),
}


def open_text(path: object, opens: Opens, wanted: Sequence[str]) -> EventFile:
    """Find out whether a text is CSV or JSON lines, and which of the wanted columns it has.

    Args:
        path: its text is what errors name.
        opens: gives the content, from its beginning.
        wanted: names of columns.
    Raises:
        EventFileError: it is neither.
    """
    with reading(path):
        with opens() as stream:
            data = stream.read(_HEAD_BYTES)
        if data.startswith((b"PAR1", b"ORC", b"ARROW1")):
            raise EventFileError(f"{path}: is a compressed {data[:4].decode()} file, which is compressed inside already; unpack it first")
        data = data.removeprefix(_BOM)
        if b"\x00" in data[:4096]:
            raise EventFileError(f"{path}: is no text and no format that is read; write Parquet, ORC, CSV or JSON lines")
        if data.lstrip()[:1] == b"[":
            raise EventFileError(f"{path}: is one JSON array; write one JSON object a line")
        return open_json_lines(path, opens, wanted) if data.lstrip()[:1] == b"{" else open_csv(path, opens, wanted)
