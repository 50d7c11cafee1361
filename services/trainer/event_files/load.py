"""From a file to batches of its columns, as pyarrow arrays: Parquet, ORC, Arrow, CSV and JSON lines.

The content decides what a file is, not its name: Hive writes `000000_0`, others `.pq` or `.PARQUET`. Texts may be compressed. A format that
is known and not read is refused by its name. A file is never in memory as a whole: what is, is a batch of rows and what its format reads at
once (a page of a Parquet column, a stripe of ORC, a record batch of Arrow, a block of CSV).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
from pyarrow import orc

from services.common.platform.errors import ConfigurationError
from services.trainer.event_files.places import EventFileError
from services.trainer.event_files.reading import BATCH_ROWS, Columns, EventFile, check_names, reading
from services.trainer.event_files.sources import DataFile, opened
from services.trainer.event_files.text_files import open_text, unpacked

_READ_AHEAD_BYTES = 1 << 20
_PARQUET_SUFFIXES = (".parquet", ".pq", ".parq")


@dataclass(frozen=True, slots=True)
class Names:
    """What files call the columns: `in_file` by the name that the trainer knows; the others are called alike."""

    in_file: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Names:
        """Return those of "user_id=user,kind=action".

        Raises:
            ConfigurationError: it is of another form, or one column would be two.
        """
        pairs = []
        for pair in filter(str.strip, text.split(",")):
            ours, _, yours = (part.strip() for part in pair.partition("="))
            if not ours or not yours:
                raise ConfigurationError(f"--columns {text}: {pair.strip()!r} is not OURS=YOURS; write user_id=user,kind=action")
            pairs.append((ours, yours))
        for names in zip(*pairs, strict=True):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ConfigurationError(f"--columns {text}: {twice!r} is there twice; name each column once")
        return cls(dict(pairs))

    def of(self, name: str) -> str:
        """Return what files call the column `name`."""
        return self.in_file.get(name, name)

    def meant(self, in_file: str) -> str:
        """Return which column a file means by `in_file`."""
        return next((name for name, theirs in self.in_file.items() if theirs == in_file), in_file)


AS_HERE = Names()
"""Files that call all columns as the trainer does."""


def open_named(path: DataFile, wanted: Sequence[str], names: Names, *, or_ours: bool = False) -> EventFile:
    """As `open_file`, of a file that may call its columns otherwise; the columns are named as here, and batches have rows.

    Of an empty part the types say nothing: pandas writes columns without values as nulls.

    Args:
        path: of the file.
        wanted: as the trainer names them.
        names: what the file calls them.
        or_ours: a column that the file does not call so may have our name: files of items and users beside the events.
    """
    file = open_file(path, list(dict.fromkeys(each for name in wanted for each in (names.of(name), *([name] if or_ours else [])))))
    theirs = {name: name for name in wanted if or_ours and name in file.names}
    theirs |= {name: names.of(name) for name in wanted if names.of(name) in file.names}

    def batches(columns: Sequence[str]) -> Iterator[Columns]:
        for batch in file.batches([theirs[name] for name in columns]):
            if any(map(len, batch.values())):
                yield {name: batch[theirs[name]] for name in columns}

    return EventFile(path, tuple(theirs), batches)


def open_file(path: DataFile, wanted: Sequence[str]) -> EventFile:
    """Find out what a file is and which of the wanted columns it has.

    Raises:
        EventFileError: the file cannot be read, is of another format, or names a column twice; or a row has another number of cells.
    """
    with reading(path):
        with opened(path) as file:
            head = file.read(16)
        if not head:
            raise EventFileError(f"{path}: is empty")
        if head.startswith(b"PAR1"):
            return _of_format(path, wanted, _parquet_names, _parquet_batches)
        if head.startswith(b"ORC"):
            return _of_format(path, wanted, lambda file: orc.ORCFile(file).schema.names, _orc_batches)
        if head.startswith(b"ARROW1"):
            return _of_format(path, wanted, lambda file: pa.ipc.open_file(file).schema.names, _arrow_batches)
        if head.startswith(b"FEA1"):
            return _of_format(path, wanted, lambda file: feather.read_table(file).schema.names, _feather_batches)
        if path.name.lower().endswith(_PARQUET_SUFFIXES):
            raise EventFileError(f"{path}: is no Parquet file: it does not begin with PAR1; write it again")
        return open_text(path, lambda: unpacked(path, head), wanted)


def _of_format(path: DataFile, wanted: Sequence[str], names_of: Any, batches_of: Any) -> EventFile:
    with opened(path) as file:
        names = names_of(file)
    check_names(path, names, wanted)

    def batches(columns: Sequence[str]) -> Iterator[Columns]:
        with reading(path), opened(path) as file:
            yield from batches_of(file, columns)

    return EventFile(path, tuple(name for name in wanted if name in names), batches)


def _parquet(file: IO[bytes]) -> Any:
    # Spark's old timestamps (INT96) would wrap around outside 1677 to 2262 as nanoseconds. A buffer reads a column by pages, not whole.
    return pq.ParquetFile(file, coerce_int96_timestamp_unit="us", buffer_size=_READ_AHEAD_BYTES, pre_buffer=False)


def _parquet_names(file: IO[bytes]) -> list[str]:
    names: list[str] = _parquet(file).schema_arrow.names
    return names


def _parquet_batches(file: IO[bytes], columns: Sequence[str]) -> Iterator[Columns]:
    for batch in _parquet(file).iter_batches(batch_size=BATCH_ROWS, columns=list(columns), use_threads=False):
        yield _columns(batch, columns)


def _orc_batches(file: IO[bytes], columns: Sequence[str]) -> Iterator[Columns]:
    source = orc.ORCFile(file)
    for stripe in range(source.nstripes):
        yield from _sliced(source.read_stripe(stripe, columns=list(columns)), columns)


def _arrow_batches(file: IO[bytes], columns: Sequence[str]) -> Iterator[Columns]:
    names = pa.ipc.open_file(file).schema.names
    file.seek(0)
    fields = pa.ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns])
    source = pa.ipc.open_file(file, options=fields)
    for number in range(source.num_record_batches):
        yield from _sliced(source.get_batch(number), columns)


def _feather_batches(file: IO[bytes], columns: Sequence[str]) -> Iterator[Columns]:
    """The first version of Feather, which has no batches."""
    yield from _sliced(feather.read_table(file, columns=list(columns)), columns)


def _columns(batch: Any, columns: Sequence[str]) -> Columns:
    return {name: batch.column(name) for name in columns}


def _sliced(batch: Any, columns: Sequence[str]) -> Iterator[Columns]:
    for start in range(0, batch.num_rows, BATCH_ROWS):
        yield _columns(batch.slice(start, BATCH_ROWS), columns)
