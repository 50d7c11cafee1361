"""The reading side of a replica's mapped model, for any process of the host: Triton's instances and the recommender.

No lock, no copy of the tables, no message to the writer. A request sees whole rows that are at most one delta apart, and dense weights that
are whole and of one version. When the writer makes a new edition, the next read opens it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from services.common.platform.errors import CorruptArtifact, Unavailable
from services.common.ranker.tables.checks import TableDamaged
from services.common.ranker.tables.control_block import Applied, ControlBlock, boot_id
from services.common.ranker.tables.dense import DenseReader, DenseView
from services.common.ranker.tables.edition import TABLE_FILE_PREFIX, current_edition
from services.common.ranker.tables.index import Int64s
from services.common.ranker.tables.mapped import MappedTableReader, RowBusy

Float32s = NDArray[np.float32]
Bools = NDArray[np.bool_]
T = TypeVar("T")

_PATIENCE_S = 1.0
_PAUSE_S = 100e-6
_MAX_OPENS = 10
_BEFORE_FIRST_SEQ = -1


class TableNotReady(Unavailable):
    """The tables of this host cannot be read now: no base was applied yet, or their writer died half-way. Retrying later helps."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelView:
    """One consistent read.

    Attributes:
        rows: float32 [N, dim] per table; the default row for unknown ids.
        found: bool [N] per table.
        epoch: of seq_min and seq_max.
        seq_min: every row contains all deltas up to this one; -1 while the first delta of an epoch is being applied.
        seq_max: no row contains a delta after this one; seq_min, or the delta that follows it.
        watermark_ms: every feedback accepted up to here is in every row (of seq_min).
    """

    rows: dict[str, Float32s]
    found: dict[str, Bools]
    epoch: int
    seq_min: int
    seq_max: int
    watermark_ms: int


class _Opened:
    """One edition, mapped."""

    def __init__(self, folder: Path, schema_hash: str) -> None:
        self.control = ControlBlock(folder)
        if self.control.schema_hash != schema_hash:
            raise CorruptArtifact(f"the tables in {folder} have schema {self.control.schema_hash!r}, this program has {schema_hash!r}")
        paths = sorted(folder.glob(f"{TABLE_FILE_PREFIX}*"))
        self.tables = {path.name.removeprefix(TABLE_FILE_PREFIX): MappedTableReader(path) for path in paths}
        self.dense = DenseReader(folder)

    def check(self) -> None:
        """Look the whole edition over. Raises TableDamaged, but not for what seems so because its writer is at work."""
        for _ in range(_MAX_OPENS):
            before = self.control.checked_progress()
            try:
                for table in self.tables.values():
                    table.check()
                return
            except TableDamaged:
                if before.num_begun == before.num_done and self.control.progress() == before:
                    raise
                time.sleep(_PAUSE_S)


class ModelReader:
    """Reads the current edition of a folder of mapped tables. Thread-safe."""

    def __init__(self, directory: str | Path, schema_hash: str) -> None:
        """Open the current edition, and load the compiled kernels, so that the first request does not wait for them.

        Raises:
            TableNotReady: there is none yet.
            CorruptArtifact: it is of another schema or format, or (TableDamaged) damaged.
        """
        self._directory = Path(directory)
        self._schema_hash = schema_hash
        self._opened = self._open()
        try:
            self._opened.check()
        except Unavailable as error:
            raise TableNotReady(str(error)) from error
        self.read({name: np.empty(0, np.int64) for name in self._opened.tables})

    def read(self, ids: Mapping[str, Int64s]) -> ModelView:
        """Return the rows of ids int64 [N] per table, all from one moment: at most one delta apart.

        Raises:
            KeyError: there is no such table.
            TableNotReady: the writer died in the middle of a row or of its control block; it is well again when the next writer has built
                an edition.
        """
        arrays = {name: np.ascontiguousarray(array, np.int64) for name, array in ids.items()}
        return self._patiently(lambda opened: _read_once(opened, arrays))

    def dense(self) -> DenseView:
        """Return the dense weights; the same object until they change.

        Raises:
            TableNotReady: as `read`.
        """
        return self._patiently(lambda opened: opened.dense.read())

    def iter_rows(self, table: str) -> tuple[Int64s, Float32s]:
        """Return all ids int64 [M], ascending, and their rows float32 [M, dim].

        Each row is whole; the scan takes a while, so they may be any number of deltas apart.

        Raises:
            KeyError: there is no such table.
            TableNotReady: as `read`.
        """
        return self._patiently(lambda opened: _scan(opened.tables[table]))

    def status(self) -> Applied:
        """Return what is applied. Raises TableNotReady as `read`."""
        return self._patiently(lambda opened: opened.control.progress().applied)

    def _patiently(self, attempt: Callable[[_Opened], T | None]) -> T:
        """Repeat `attempt` until it gives something; a row that is being written is worth a short wait."""
        deadline = 0.0
        while True:
            reason = "the writer applied deltas faster than they could be read"
            try:
                result = attempt(self._current())
                if result is not None:
                    return result
            except RowBusy as error:
                reason = str(error)
            except (Unavailable, CorruptArtifact) as error:
                raise TableNotReady(str(error)) from error
            deadline = deadline or time.monotonic() + _PATIENCE_S
            if time.monotonic() > deadline:
                raise TableNotReady(f"no consistent read of {self._directory} in {_PATIENCE_S} s: {reason}")
            time.sleep(_PAUSE_S)

    def _current(self) -> _Opened:
        opened = self._opened
        if opened.control.is_retired:
            opened = self._opened = self._open()
        return opened

    def _open(self) -> _Opened:
        for _ in range(_MAX_OPENS):
            folder = current_edition(self._directory)
            if folder is None:
                raise TableNotReady(f"no base has been applied in {self._directory} yet: start the updater, or wait for its first base")
            try:
                opened = _Opened(folder, self._schema_hash)
            except FileNotFoundError:
                # The writer moved on between the two looks.
                continue
            if opened.control.boot_id != boot_id():
                raise TableNotReady(f"the tables in {folder} are from before the system's last start: the updater will build them again")
            if not opened.control.is_retired:
                return opened
        raise TableNotReady(f"the tables in {self._directory} change faster than they can be opened, or lack files")


def _read_once(opened: _Opened, ids: Mapping[str, Int64s]) -> ModelView | None:
    """Return a view, None if more than one delta was applied meanwhile."""
    before = opened.control.progress()
    rows: dict[str, Float32s] = {}
    found: dict[str, Bools] = {}
    for name, wanted in ids.items():
        table = opened.tables[name]
        rows[name] = np.empty((wanted.size, table.dim), np.float32)
        found[name] = np.empty(wanted.size, np.bool_)
        table.read(wanted, rows[name], found[name])
    after = opened.control.progress()
    if after.num_begun - before.num_done > 1:
        return None
    seq_min = before.applied.seq if before.applied.epoch == after.begun_epoch else _BEFORE_FIRST_SEQ
    return ModelView(rows, found, after.begun_epoch, seq_min, after.begun_seq, before.applied.watermark_ms)


def _scan(table: MappedTableReader) -> tuple[Int64s, Float32s]:
    ids = table.ids()
    rows = np.empty((ids.size, table.dim), np.float32)
    found = np.empty(ids.size, np.bool_)
    table.read(ids, rows, found)
    return ids[found], rows[found]
