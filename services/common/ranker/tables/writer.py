"""The writing side of a replica's mapped model: builds a generation from a base, then applies deltas to it in place.

What readers see are whole rows at any moment; a writer that dies half-way leaves a generation that its successor recognises and does not go
on from. Knows nothing of Kafka, epochs or gaps: which delta may be applied is the caller's decision.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.common.platform.errors import CorruptArtifact
from services.common.ranker.delta import DeltaBody, TableDelta
from services.common.ranker.tables.dense import DenseReader, DenseView, DenseWriter
from services.common.ranker.tables.generation import (
    TABLE_FILE_PREFIX,
    Applied,
    Control,
    WriterLock,
    boot_id,
    current_generation,
    make_current,
    new_generation,
    remove_other_generations,
)
from services.common.ranker.tables.index import Int64s
from services.common.ranker.tables.mapped import MappedTableWriter

Float32s = NDArray[np.float32]

_log = logging.getLogger(__name__)

_MIN_CAPACITY = 1024
# Room to grow into before the next generation.
_HEADROOM = 2
_TABLE_NAME = re.compile(r"[A-Za-z0-9_\-]+")


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
class _Generation:
    folder: Path
    control: Control
    tables: dict[str, MappedTableWriter]
    dense: DenseWriter


class ModelWriter:
    """The one writer of a folder of mapped tables."""

    def __init__(self, directory: str | Path, schema_hash: str) -> None:
        """Take the folder's lock, and go on from the current generation if it is whole and of this schema; else `build` is needed.

        Raises:
            ConfigurationError: another process writes here, or the folder cannot be written.
        """
        self._directory = Path(directory)
        self._schema_hash = schema_hash
        self._lock = WriterLock(self._directory)
        self._generation: _Generation | None = None
        try:
            self._generation = self._open_current()
        except (CorruptArtifact, FileNotFoundError) as reason:
            _log.warning("the tables in %s will be built again: %s", self._directory, reason)

    @property
    def applied(self) -> Applied | None:
        """What the current generation contains; None when there is none to go on from."""
        return None if self._generation is None else self._generation.control.progress().applied

    @property
    def lineage_id(self) -> str:
        """Lineage of the current generation, "" when there is none."""
        return "" if self._generation is None else self._generation.control.lineage_id

    def num_rows(self) -> dict[str, int]:
        """Return the number of rows per table."""
        return {} if self._generation is None else {name: len(table) for name, table in self._generation.tables.items()}

    def build(self, tables: Mapping[str, TableImage], dense: Mapping[str, Float32s], applied: Applied, *, lineage_id: str) -> None:
        """Make a new generation from a base and switch readers to it; the one before stays whole until then.

        Raises:
            OSError: e.g. no space left; the current generation is untouched.
            ValueError: shapes do not match, a table's name cannot be a file's, or the base's id is too long.
        """
        view = DenseView((applied.epoch, applied.seq), dense)
        self._build(tables, view, applied, lineage_id, room={})

    def apply(self, body: DeltaBody, applied: Applied) -> None:
        """Apply one delta in place; afterwards the model contains `applied`. Applying it again changes nothing.

        Raises:
            CorruptArtifact: the delta names a table, a dim or a tensor that this model does not have. Nothing was changed.
            RuntimeError: there is no generation; call `build` first.
        """
        if self._generation is None:
            raise RuntimeError("apply before build")
        _check(body, self._generation)
        tables = self._generation.tables
        if not all(_has_room(tables[name], delta) for name, delta in body.tables.items()):
            self._grow(self._generation, {name: delta.ids.size for name, delta in body.tables.items()})
        # Until it is whole again there is nothing to go on from.
        at, self._generation = self._generation, None
        at.control.begin(applied.epoch, applied.seq)
        for name, delta in body.tables.items():
            at.tables[name].delete(delta.tombstones)
            at.tables[name].upsert(delta.ids, delta.rows)
        if body.dense is not None:
            at.dense.change(body.dense, epoch=applied.epoch, seq=applied.seq)
        at.control.finish(applied)
        self._generation = at

    def close(self) -> None:
        """Let go of the folder; the generation stays for readers and for the next writer."""
        self._generation = None
        self._lock.release()

    def _open_current(self) -> _Generation | None:
        folder = current_generation(self._directory)
        remove_other_generations(self._directory)
        if folder is None:
            return None
        control = Control(folder, writable=True)
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
        return _Generation(folder, control, tables, DenseWriter(folder))

    def _build(
        self, tables: Mapping[str, TableImage], dense: DenseView, applied: Applied, lineage_id: str, *, room: Mapping[str, int]
    ) -> None:
        """Make a generation with room for `room` more rows per table, and switch to it."""
        if not all(_TABLE_NAME.fullmatch(name) for name in tables):
            raise ValueError(f"table names {sorted(tables)} are not all made of letters, digits, '_' and '-'")
        number, folder = new_generation(self._directory)
        writers = {}
        for name, image in tables.items():
            writers[name] = MappedTableWriter.create(
                folder / f"{TABLE_FILE_PREFIX}{name}",
                generation=number,
                dim=image.rows.shape[1],
                capacity=max(_MIN_CAPACITY, _HEADROOM * (image.ids.size + room.get(name, 0))),
                default_row=image.default_row,
            )
            writers[name].upsert(image.ids, image.rows)
        epoch, seq = dense.version
        dense_writer = DenseWriter.create(folder, dense.tensors, epoch=epoch, seq=seq)
        control = Control.create(folder, schema_hash=self._schema_hash, lineage_id=lineage_id, applied=applied)
        make_current(self._directory, folder)
        self._generation = _Generation(folder, control, writers, dense_writer)
        remove_other_generations(self._directory)

    def _grow(self, generation: _Generation, room: Mapping[str, int]) -> None:
        """Copy `generation` to a new one with room for `room` more rows per table."""
        images = {}
        for name, table in generation.tables.items():
            ids, rows = table.contents()
            images[name] = TableImage(ids, rows, table.default_row)
        control = generation.control
        self._build(images, DenseReader(generation.folder).read(), control.progress().applied, control.lineage_id, room=room)


def _check(body: DeltaBody, generation: _Generation) -> None:
    """Raise CorruptArtifact unless everything in `body` has its place in `generation`."""
    for name, delta in body.tables.items():
        table = generation.tables.get(name)
        if table is None:
            raise CorruptArtifact(f"the delta has a table {name!r}, this model has {sorted(generation.tables)}")
        if delta.rows.shape != (delta.ids.size, table.dim):
            raise CorruptArtifact(f"the delta's rows of table {name!r} have shape {delta.rows.shape}, this model has dim {table.dim}")
    if body.dense is not None:
        generation.dense.check(body.dense)


def _has_room(table: MappedTableWriter, delta: TableDelta) -> bool:
    """Cheap first: most deltas fit even if all their ids were new."""
    return table.has_room_for(delta.ids.size) or table.has_room_for(table.missing(delta.ids).size)
