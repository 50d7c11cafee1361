"""The writing side of a replica's mapped model: builds an edition from a base, then applies deltas to it in place.

What readers see are whole rows at any moment; a writer that dies half-way leaves an edition that its successor recognises and does not go
on from. Knows nothing of Kafka, epochs or gaps: which delta may be applied is the caller's decision.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.common.platform.errors import CorruptArtifact
from services.common.ranker.delta import DeltaBody, TableDelta
from services.common.ranker.tables.checks import TableDamaged
from services.common.ranker.tables.control_block import Applied, ControlBlock, boot_id
from services.common.ranker.tables.dense import DenseReader, DenseView, DenseWriter
from services.common.ranker.tables.edition import (
    TABLE_FILE_PREFIX,
    WriterLock,
    abandon,
    current_edition,
    make_current,
    new_edition,
    remove_other_editions,
)
from services.common.ranker.tables.index import Int64s
from services.common.ranker.tables.mapped import MappedTableWriter

Float32s = NDArray[np.float32]

_log = logging.getLogger(__name__)

_MIN_CAPACITY = 1024
# Room to grow into before the next edition.
_HEADROOM = 2
TABLE_NAME = re.compile(r"[A-Za-z0-9_\-]+")


@dataclass(frozen=True, slots=True, eq=False)
class TableImage:
    """A whole table.

    Attributes:
        ids: int64 [M], distinct.
        rows: float32 [M, dim].
        default_row: float32 [dim], what unknown ids read.
    """

    ids: Int64s
    rows: Float32s
    default_row: Float32s


@dataclass(slots=True, eq=False)
class _Edition:
    folder: Path
    control: ControlBlock
    tables: dict[str, MappedTableWriter]
    dense: DenseWriter


class ModelWriter:
    """The one writer of a folder of mapped tables."""

    def __init__(self, directory: str | Path, schema_hash: str) -> None:
        """Take the folder's lock, and go on from the current edition if it is whole and of this schema; else `build` is needed.

        Raises:
            ConfigurationError: another process writes here, or the folder cannot be written.
        """
        self._directory = Path(directory)
        self._schema_hash = schema_hash
        self._lock = WriterLock(self._directory)
        self._edition: _Edition | None = None
        # The share of the edition that `check` has looked over in this round.
        self._checked = 0.0
        try:
            self._edition = self._open_current()
        except TableDamaged as damage:
            _log.error("the tables in %s are damaged, and will be built again: %s", self._directory, damage)
            self._abandon()  # readers that have them open would go on serving them
        except (CorruptArtifact, FileNotFoundError) as reason:
            _log.warning("the tables in %s will be built again: %s", self._directory, reason)

    @property
    def applied(self) -> Applied | None:
        """What the current edition contains; None when there is none to go on from."""
        return None if self._edition is None else self._edition.control.progress().applied

    @property
    def lineage_id(self) -> str:
        """Lineage of the current edition, "" when there is none."""
        return "" if self._edition is None else self._edition.control.lineage_id

    def num_rows(self) -> dict[str, int]:
        """Return the number of rows per table."""
        return {} if self._edition is None else {name: len(table) for name, table in self._edition.tables.items()}

    def build(self, tables: Mapping[str, TableImage], dense: Mapping[str, Float32s], applied: Applied, *, lineage_id: str) -> None:
        """Make a new edition from a base and switch readers to it; the one before stays whole until then.

        Raises:
            OSError: e.g. no space left; the current edition is untouched.
            ValueError: shapes do not match, a table's name cannot be a file's, or the base's id is too long.
        """
        view = DenseView((applied.epoch, applied.seq), dense)
        self._build(tables, view, applied, lineage_id, room={})

    def apply(self, body: DeltaBody, applied: Applied) -> None:
        """Apply one delta in place; afterwards the model contains `applied`. Applying it again changes nothing.

        Raises:
            CorruptArtifact: the delta names a table, a dim or a tensor that this model does not have. Nothing was changed.
            TableDamaged: the memory is not what was written. Readers are turned away; there is no edition any more.
            RuntimeError: there is no edition; call `build` first.
        """
        if self._edition is None:
            raise RuntimeError("apply before build")
        _check(body, self._edition)
        try:
            tables = self._edition.tables
            if not all(_has_room(tables[name], delta) for name, delta in body.tables.items()):
                self._grow(self._edition, {name: delta.ids.size for name, delta in body.tables.items()})
            # Until it is whole again there is nothing to go on from.
            at, self._edition = self._edition, None
            at.control.begin(applied.epoch, applied.seq)
            for name, delta in body.tables.items():
                at.tables[name].delete(delta.tombstones)
                at.tables[name].upsert(delta.ids, delta.rows)
            if body.dense is not None:
                at.dense.change(body.dense, epoch=applied.epoch, seq=applied.seq)
            at.control.finish(applied)
            self._edition = at
        except TableDamaged:
            self._abandon()
            raise

    def check(self, share: float) -> None:
        """Look over the next `share`, from 0 to 1, of the current edition; after the last one it begins again. Between two deltas.

        Any bit that changed by itself and that a reader could meet is found when all shares have been looked over once.

        Raises:
            TableDamaged: the memory is not what was written. Readers are turned away; there is no edition any more.
        """
        at = self._edition
        if at is None:
            return
        start, end = self._checked, min(1.0, self._checked + share)
        try:
            if start <= 0.0:
                self._check_small_parts(at)
            for table in at.tables.values():
                table.check(start, end)
        except TableDamaged:
            self._abandon()
            raise
        self._checked = 0.0 if end >= 1.0 else end

    def close(self) -> None:
        """Let go of the folder; the edition stays for readers and for the next writer."""
        self._edition = None
        self._lock.release()

    def _check_small_parts(self, at: _Edition) -> None:
        try:
            current = current_edition(self._directory)
            at.control.check()
            at.dense.check_memory()
        except (CorruptArtifact, FileNotFoundError) as error:
            raise TableDamaged(str(error)) from error
        if current != at.folder:
            raise TableDamaged(f"{self._directory} names {current}, but {at.folder} is current")

    def _abandon(self) -> None:
        self._edition = None
        abandon(self._directory)

    def _open_current(self) -> _Edition | None:
        folder = current_edition(self._directory)
        remove_other_editions(self._directory)
        if folder is None:
            return None
        control = ControlBlock(folder, writable=True)
        if control.schema_hash != self._schema_hash:
            raise CorruptArtifact(f"{folder.name} has schema {control.schema_hash!r}, this program has {self._schema_hash!r}")
        if not control.boot_id or control.boot_id != boot_id():
            raise CorruptArtifact(f"{folder.name} is from before the system's last start, and may not have reached the disk whole")
        control.resume()
        progress = control.progress()
        if progress.num_begun != progress.num_done:
            raise CorruptArtifact(f"{folder.name}: its writer died while applying {progress.begun_epoch}.{progress.begun_seq}")
        paths = folder.glob(f"{TABLE_FILE_PREFIX}*")
        tables = {path.name.removeprefix(TABLE_FILE_PREFIX): MappedTableWriter(path) for path in paths}
        return _Edition(folder, control, tables, DenseWriter(folder))

    def _build(
        self, tables: Mapping[str, TableImage], dense: DenseView, applied: Applied, lineage_id: str, *, room: Mapping[str, int]
    ) -> None:
        """Make an edition with room for `room` more rows per table, and switch to it."""
        if not all(TABLE_NAME.fullmatch(name) for name in tables):
            raise ValueError(f"table names {sorted(tables)} are not all made of letters, digits, '_' and '-'")
        number, folder = new_edition(self._directory)
        try:
            edition = self._fill(number, folder, tables, dense, applied, lineage_id, room)
            make_current(self._directory, folder)
        except BaseException:
            # What a full disk left half-made must not keep it full.
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._edition = edition
        self._checked = 0.0
        remove_other_editions(self._directory)

    def _fill(
        self,
        number: int,
        folder: Path,
        tables: Mapping[str, TableImage],
        dense: DenseView,
        applied: Applied,
        lineage_id: str,
        room: Mapping[str, int],
    ) -> _Edition:
        writers = {}
        for name, image in tables.items():
            writers[name] = MappedTableWriter.create(
                folder / f"{TABLE_FILE_PREFIX}{name}",
                edition=number,
                dim=image.rows.shape[1],
                capacity=max(_MIN_CAPACITY, _HEADROOM * (image.ids.size + room.get(name, 0))),
                default_row=image.default_row,
            )
            writers[name].upsert(image.ids, image.rows)
        epoch, seq = dense.version
        dense_writer = DenseWriter.create(folder, dense.tensors, epoch=epoch, seq=seq)
        control = ControlBlock.create(folder, schema_hash=self._schema_hash, lineage_id=lineage_id, applied=applied)
        return _Edition(folder, control, writers, dense_writer)

    def _grow(self, edition: _Edition, room: Mapping[str, int]) -> None:
        """Copy `edition` to a new one with room for `room` more rows per table."""
        self._check_small_parts(edition)
        images = {}
        for name, table in edition.tables.items():
            ids, rows = table.contents()
            images[name] = TableImage(ids, rows, table.default_row)
        control = edition.control
        self._build(images, DenseReader(edition.folder).read(), control.progress().applied, control.lineage_id, room=room)


def _check(body: DeltaBody, edition: _Edition) -> None:
    """Raise CorruptArtifact unless everything in `body` has its place in `edition`."""
    for name, delta in body.tables.items():
        table = edition.tables.get(name)
        if table is None:
            raise CorruptArtifact(f"the delta has a table {name!r}, this model has {sorted(edition.tables)}")
        if delta.rows.shape != (delta.ids.size, table.dim):
            raise CorruptArtifact(f"the delta's rows of table {name!r} have shape {delta.rows.shape}, this model has dim {table.dim}")
    if body.dense is not None:
        edition.dense.check(body.dense)


def _has_room(table: MappedTableWriter, delta: TableDelta) -> bool:
    """Return whether a delta fits. The cheap look comes first: most deltas fit even if all their ids were new."""
    return table.has_room_for(delta.ids.size) or table.has_room_for(table.missing(delta.ids).size)
