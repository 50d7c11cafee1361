"""A writer, or a checking reader, of mapped tables as a process of its own, for test_mapped_tables.

    python -m tests.faults.mapped_table_process write DIRECTORY [die-between-tables | die-in-row | die-in-control]
    python -m tests.faults.mapped_table_process read DIRECTORY READS DELTAS

Delta `seq` writes `seq` into every column of every id's row, in both tables, but removes the ids of which id % 3 == seq % 3, so that slots
change hands all the time; passing visitors make the tables grow. Hence a reader can tell from the rows alone whether they are whole and
which delta each is from.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import numpy as np

from services.common.platform.errors import Unavailable
from services.common.ranker.delta import DeltaBody, TableDelta
from services.common.ranker.tables.control_block import Applied, ControlBlock
from services.common.ranker.tables.mapped import MappedTableWriter
from services.common.ranker.tables.reader import ModelReader
from services.common.ranker.tables.writer import ModelWriter, TableImage

SCHEMA, LINEAGE = "schema", "lineage"
DIM = 19
TABLES = ("item", "user")
IDS = np.concatenate([np.arange(-60, 60), [np.iinfo(np.int64).min, np.iinfo(np.int64).max]]).astype(np.int64)
VISITORS = 40
# The delta in which a writer dies on demand, and an id that has a row before and after it.
DEADLY, IN_BOTH = 50, 3


def present(seq: int) -> np.ndarray:
    """Return which of IDS have a row after delta `seq`."""
    return seq % 3 != IDS % 3


def table_delta(seq: int) -> TableDelta:
    visitors = 1_000_000 + np.arange(VISITORS * seq, VISITORS * (seq + 1))
    ids = np.sort(np.concatenate([IDS[present(seq)], visitors]))
    gone = np.sort(np.concatenate([IDS[~present(seq)], visitors - 3 * VISITORS]))
    return TableDelta(ids, np.full((ids.size, DIM), seq, np.float32), gone)


def applied(seq: int) -> Applied:
    return Applied(epoch=1, seq=seq, watermark_ms=10 * seq, base_id="base", delta_offset=seq)


def dense(seq: int) -> dict[str, np.ndarray]:
    return {"w": np.full(5000, seq, np.float32)}


def build(writer: ModelWriter, seq: int) -> None:
    """Build an edition as if from a base of delta `seq`."""
    delta = table_delta(seq)
    image = TableImage(delta.ids, delta.rows, np.full(DIM, -1, np.float32))
    writer.build(dict.fromkeys(TABLES, image), dense(seq), applied(seq), lineage_id=LINEAGE)


def write(directory: str, death: str) -> None:
    """Apply deltas for ever, or until half-way through one."""
    writer = ModelWriter(directory, SCHEMA)
    found = writer.applied
    if found is None:
        build(writer, 0)
    seq = 0 if found is None else found.seq
    print("rebuilt" if found is None else "resumed", seq, flush=True)
    while True:
        seq += 1
        if death and seq == DEADLY:
            ARRANGE[death]()
        writer.apply(DeltaBody(dict.fromkeys(TABLES, table_delta(seq)), dense(seq)), applied(seq))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_between_tables() -> None:
    upsert = MappedTableWriter.upsert

    def upsert_and_die(self: MappedTableWriter, ids: np.ndarray, rows: np.ndarray) -> None:
        upsert(self, ids, rows)
        die()

    MappedTableWriter.upsert = upsert_and_die  # type: ignore[method-assign]


def die_in_row() -> None:
    def lock_and_die(self: MappedTableWriter, ids: np.ndarray, rows: np.ndarray) -> None:
        at = self._layout
        slot = self._find(np.array([IN_BOTH]))[0]
        at.row_words[slot * at.stride] += 1
        at.row_floats[2 * (slot * at.stride + 2)] = -666.0
        die()

    MappedTableWriter.upsert = lock_and_die  # type: ignore[method-assign]


def die_in_control() -> None:
    def lock_and_die(self: ControlBlock, applied: Applied) -> None:
        self._words[3] |= 1
        self._words[8:16] = -666
        die()

    ControlBlock.finish = lock_and_die  # type: ignore[method-assign]


ARRANGE: dict[str, Callable[[], None]] = {
    "die-between-tables": die_between_tables,
    "die-in-row": die_in_row,
    "die-in-control": die_in_control,
}


def check_once(reader: ModelReader) -> int:
    """Read everything once; return the seq_max seen. Raises AssertionError if anything is not as one delta, or two neighbours, left it."""
    view = reader.read(dict.fromkeys(TABLES, IDS))
    assert view.epoch == 1
    assert view.seq_max - view.seq_min in (0, 1), (view.seq_min, view.seq_max)
    assert view.watermark_ms == 10 * view.seq_min
    for name in TABLES:
        rows, found = view.rows[name], view.found[name]
        assert np.all(rows == rows[:, :1]), f"torn row in {name}: {rows[np.any(rows != rows[:, :1], axis=1)]}"
        written_by = rows[:, 0]
        assert np.all(written_by[~found] == -1)
        assert np.all((written_by[found] == view.seq_min) | (written_by[found] == view.seq_max)), (view.seq_min, view.seq_max, written_by)
        assert np.all(IDS[found] % 3 != written_by[found] % 3), "a row of an id that the delta had removed"
        assert np.all(~present(view.seq_min)[~found] | ~present(view.seq_max)[~found]), "an id that every delta has is missing"
    weights = reader.dense()
    assert np.all(weights.tensors["w"] == weights.version[1]), "torn dense weights"
    return view.seq_max


def read(directory: str, min_reads: int, min_deltas: int) -> None:
    """Check until so many reads were made, over so many deltas."""
    reader = ModelReader(directory, SCHEMA)
    num_reads, seqs = 0, set()
    while num_reads < min_reads or len(seqs) < min_deltas:
        try:
            seqs.add(check_once(reader))
        except Unavailable:
            continue
        num_reads += 1


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "")
    else:
        read(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
