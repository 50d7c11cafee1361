"""Rows in the order of a key, however many there are: sorted blocks become runs on disk, and runs are merged page by page.

Rows that come in order already, or out of it by less than a block, are one run and need no merge. Of equal keys, what came first stays
first. Few rows never leave the memory.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from services.common.platform.errors import ConfigurationError
from services.common.platform.stores import is_local, open_store

PAGE_ROWS = 4_096
"""Rows that are read at once."""
BLOCK_ROWS = 1 << 17
"""Rows that are sorted at once, in memory."""
FAN_IN = 64
"""Runs that are merged at once: so many files are open, and so many pages in memory."""


class WorkFolder:
    """A folder for what does not stay in memory. It is made when it is needed, and deleted when it is closed or nobody refers to it."""

    def __init__(self, path: Path | None = None, *, block_rows: int = BLOCK_ROWS, fan_in: int = FAN_IN) -> None:
        """Nothing is made yet.

        Args:
            path: of the folder; what an earlier process left there is deleted. None: a new one in the system's folder for such files.
            block_rows: rows that are sorted in memory; fewer never come here.
            fan_in: runs that are merged at once.
        """
        self.block_rows, self.fan_in = block_rows, fan_in
        self._path, self._lock = path, None if path is None else path.with_name(f"{path.name}.lock")
        self._made: Path | None = None
        self._delete: Any = None
        self._num_files = 0

    @classmethod
    def beside(cls, url: str) -> WorkFolder:
        """Return the one beside what will be written at an fsspec URL; in the system's folder where that is no disk of this machine."""
        filesystem, path = open_store(url)
        return cls(Path(f"{path.rstrip('/')}.events") if is_local(filesystem) else None)

    def new_file(self) -> Path:
        """Return a name that no file has yet.

        Raises:
            ConfigurationError: the folder cannot be made, or another process works there.
        """
        if self._made is None:
            self._made = self._make()
        self._num_files += 1
        return self._made / f"{self._num_files:06d}.arrow"

    def _make(self) -> Path:
        with writing(self._path):
            if self._path is None or self._lock is None:
                made, held = Path(tempfile.mkdtemp(prefix="tunemesh-events-")), None
            else:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                made, held = self._path, _locked(self._lock)
                shutil.rmtree(made, ignore_errors=True)
                made.mkdir()
        self._delete = weakref.finalize(self, _remove, made, held, self._lock)
        return made

    def close(self) -> None:
        """Delete the folder."""
        if self._delete is not None:
            self._delete()
        self._made = self._delete = None


def _locked(path: Path) -> IO[bytes]:
    held = path.open("wb")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        held.close()
        raise ConfigurationError(
            f"{path}: another process trains a base for the same place; wait for it, or write to another place"
        ) from error
    return held


def _remove(folder: Path, held: IO[bytes] | None, lock: Path | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if held is not None and lock is not None:
        lock.unlink(missing_ok=True)
        held.close()


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Turn what the disk says into ConfigurationError."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written ({error}); make room there, or write the base elsewhere") from error


@dataclass(slots=True)
class Run:
    """Rows in order, as pages in a file or in memory.

    Attributes:
        schema: of the pages.
        ends: of each page, how many rows stand up to its end.
        path: of the file; None: `pages` are all in memory.
    """

    schema: Any
    ends: list[int]
    path: Path | None = None
    pages: Sequence[Any] = ()
    _reader: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def page(self, number: int) -> Any:
        """Return a page, a pyarrow record batch."""
        if self.path is None:
            return self.pages[number]
        if self._reader is None:
            self._reader = pa.ipc.open_file(pa.OSFile(str(self.path)))
        return self._reader.get_batch(number)

    def __iter__(self) -> Iterator[Any]:
        return (self.page(number) for number in range(len(self.ends)))

    def delete(self) -> None:
        """Delete the file."""
        self._reader = None
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class RunWriter:
    """Writes a run to a file."""

    def __init__(self, work: WorkFolder, schema: Any) -> None:
        self._path, self._schema, self._ends = work.new_file(), schema, [0]
        with writing(self._path):
            self._writer = pa.ipc.new_file(str(self._path), schema)

    def write(self, table: Any) -> None:
        """Write the next rows; raises ConfigurationError where the disk is full."""
        with writing(self._path):
            for batch in table.combine_chunks().to_batches(max_chunksize=PAGE_ROWS):
                self._writer.write_batch(batch)
                self._ends.append(self._ends[-1] + batch.num_rows)

    def close(self) -> Run:
        """Return the run."""
        with writing(self._path):
            self._writer.close()
        return Run(self._schema, self._ends[1:], self._path)


class Sorter:
    """Takes batches of rows and gives them in the order of a column of int64."""

    def __init__(self, work: WorkFolder, schema: Any, key: str) -> None:
        """schema: of the batches, without nulls in `key`."""
        self._work, self._schema, self._key = work, schema, key
        self._waiting: list[Any] = []
        self._num_waiting = 0
        self._open: RunWriter | None = None
        self._last_key = 0
        self._runs: list[Run] = []

    @property
    def num_runs(self) -> int:
        """Runs that were begun; 1: nothing had to be merged."""
        return len(self._runs) + (self._open is not None)

    def add(self, batch: Any) -> None:
        """Take the next rows, a record batch."""
        self._waiting.append(batch)
        self._num_waiting += batch.num_rows
        if self._num_waiting >= self._work.block_rows:
            self._spill()

    def _block(self) -> tuple[Any, Any]:
        """Return the waiting rows in order, and their keys."""
        table = pa.Table.from_batches(self._waiting, self._schema)
        self._waiting, self._num_waiting = [], 0
        return _in_order(table, self._key)

    def _spill(self) -> None:
        table, keys_N = self._block()
        if self._open is not None and keys_N[0] < self._last_key:
            self._runs.append(self._open.close())
            self._open = None
        if self._open is None:
            self._open = RunWriter(self._work, self._schema)
        self._open.write(table)
        self._last_key = keys_N[-1]

    def finish(self) -> Run:
        """Return all rows in order."""
        if self._open is None:
            pages = self._block()[0].combine_chunks().to_batches(max_chunksize=PAGE_ROWS)
            return Run(self._schema, np.cumsum([page.num_rows for page in pages]).tolist(), None, pages)
        if self._num_waiting:
            self._spill()
        assert self._open is not None
        runs, self._open, self._runs = [*self._runs, self._open.close()], None, []
        while len(runs) > 1:
            groups = [runs[start : start + self._work.fan_in] for start in range(0, len(runs), self._work.fan_in)]
            runs = [self._merged(group) if len(group) > 1 else group[0] for group in groups]
        return runs[0]

    def _merged(self, runs: Sequence[Run]) -> Run:
        writer = RunWriter(self._work, self._schema)
        for table in merge(runs, self._key):
            writer.write(table)
        for run in runs:
            run.delete()
        return writer.close()


def _in_order(table: Any, key: str) -> tuple[Any, Any]:
    keys_N = table.column(key).to_numpy()
    if len(keys_N) and (keys_N[1:] < keys_N[:-1]).any():
        order_N = np.argsort(keys_N, kind="stable")
        return table.take(pa.array(order_N)), keys_N[order_N]
    return table, keys_N


def merge(runs: Sequence[Run], key: str) -> Iterator[Any]:
    """Yield tables that are in order, one after another. Of equal keys, those of an earlier run come first."""
    rests = [iter(run) for run in runs]
    pages: list[Any] = [next(rest, None) for rest in rests]
    while any(page is not None for page in pages):
        keys = [None if page is None else page.column(key).to_numpy() for page in pages]
        # Behind the page that ends first nothing of its run is known yet: what may come before that is taken.
        end, first = min((int(of_run[-1]), place) for place, of_run in enumerate(keys) if of_run is not None)
        parts = []
        for place, of_run in enumerate(keys):
            if of_run is None:
                continue
            count = int(np.searchsorted(of_run, end, side="right" if place <= first else "left"))
            parts.append(pages[place].slice(0, count))
            pages[place] = pages[place].slice(count) if count < len(of_run) else next(rests[place], None)
        yield _in_order(pa.Table.from_batches(parts), key)[0]
