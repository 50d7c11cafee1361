"""Has the compiled code of the mapped tables and of deltas ready before a process says that it serves.

A kernel is compiled, or loaded from numba's cache beside its source, at its first call: up to seconds in which the interpreter does little
else, in whatever request or turn of the event loop that call is. What it is compiled for are the types that it is called with, so the
warm-up goes through the real classes, over a model of a few rows. Call it in a thread, before the process says that it is ready.
"""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tunemesh.events.v1 import delta_pb2

from services.common.ranker.delta import DeltaBody, TableDelta, decode_body, encode_body
from services.common.ranker.tables.control_block import Applied
from services.common.ranker.tables.index import Int64s
from services.common.ranker.tables.reader import ModelReader
from services.common.ranker.tables.writer import ModelWriter, TableImage

_HASH = "warm-up"
_TABLE = "warm"
_DIM = 2
# More than the fewest that a new edition has room for: one is made anew.
_MANY = 3_000

_log = logging.getLogger(__name__)


def warm_up_tables() -> float:
    """Build, change, check and read a small model in a folder that is removed again; return the seconds.

    Raises:
        OSError: there is no room for a few hundred kB among the system's temporary files.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tunemesh-warm-up-") as name:
        folder = Path(name)
        _build(folder)
        _change(folder)
        _read(folder)
    took_s = time.perf_counter() - started
    _log.info("the compiled code of the tables is ready after %.1f s", took_s)
    return took_s


def _build(folder: Path) -> None:
    writer = ModelWriter(folder, _HASH)
    ids = np.arange(4, dtype=np.int64)
    image = TableImage(ids, _rows(ids), np.zeros(_DIM, np.float32))
    writer.build({_TABLE: image}, {"w": np.zeros(3, np.float32)}, _applied(0), lineage_id=_HASH)
    writer.close()


def _change(folder: Path) -> None:
    """As the updater does: go on from an edition, apply deltas as they come from the log, look the memory over."""
    writer = ModelWriter(folder, _HASH)
    for seq, ids in enumerate((np.arange(2, 6, dtype=np.int64), np.arange(2, _MANY, dtype=np.int64)), start=1):
        body = DeltaBody({_TABLE: TableDelta(ids, _rows(ids), np.array([seq - 1], np.int64))}, {"w": np.ones(3, np.float32)})
        for dtype in (delta_pb2.ROW_DTYPE_INT8_ROWWISE, delta_pb2.ROW_DTYPE_BF16, delta_pb2.ROW_DTYPE_FP32):
            body = decode_body(encode_body(body, dtype), dtype)
        writer.apply(body, _applied(seq))
    writer.check(1.0)
    writer.close()


def _read(folder: Path) -> None:
    """As the recommender and Triton do."""
    reader = ModelReader(folder, _HASH)
    reader.read({_TABLE: np.array([1, 3, 99_999], np.int64)})
    reader.iter_rows(_TABLE)
    reader.dense()
    reader.status()


def _rows(ids: Int64s) -> NDArray[np.float32]:
    return np.ones((ids.size, _DIM), np.float32)


def _applied(seq: int) -> Applied:
    return Applied(base_id=_HASH, epoch=1, seq=seq, watermark_ms=0, delta_offset=seq)
