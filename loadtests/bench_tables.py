"""Measure the embedding tables on this machine: `python -m loadtests.bench_tables [NUM_ROWS]`. One line a number, no assertion."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tunemesh.events.v1 import delta_pb2

from services.common.ranker.delta import DeltaBody, TableDelta, decode_body, encode_body
from services.common.ranker.tables.control_block import Applied
from services.common.ranker.tables.reader import ModelReader
from services.common.ranker.tables.writer import ModelWriter, TableImage
from services.trainer.trainer_table import TrainerTable

DIM = 16
REQUEST_ROWS = 2600
DELTA_ROWS = 5000
DTYPES = {"fp32": delta_pb2.ROW_DTYPE_FP32, "bf16": delta_pb2.ROW_DTYPE_BF16, "int8": delta_pb2.ROW_DTYPE_INT8_ROWWISE}


def percentiles(work: Callable[[int], object], repeats: int) -> str:
    """Return p50 and p99 of work(i), in microseconds."""
    work(0)
    took = np.empty(repeats)
    for i in range(repeats):
        started = time.perf_counter()
        work(i)
        took[i] = time.perf_counter() - started
    p50, p99 = np.percentile(took * 1e6, [50, 99])
    return f"p50 {p50:8.1f} us   p99 {p99:8.1f} us"


def million_per_second(count: int, work: Callable[[], object]) -> str:
    """Return how many of `count` units work() does per second."""
    started = time.perf_counter()
    work()
    return f"{count / (time.perf_counter() - started) / 1e6:8.2f} M/s"


def bench_trainer_table(ids: np.ndarray, rng: np.random.Generator) -> None:
    """The trainer's side, in ordinary memory."""
    table = TrainerTable("user", DIM)
    table.slots_for_update(ids[:1])
    print("trainer: create rows           ", million_per_second(ids.size, lambda: table.slots_for_update(ids)))
    print("trainer: look rows up          ", million_per_second(ids.size, lambda: table.lookup(ids)))
    batches = [rng.choice(ids, 2000) for _ in range(100)]

    def micro_batch(i: int) -> None:
        batch = batches[i % 100]
        unique = np.unique(batch, return_counts=True)[0]
        table.count(batch)
        table.lookup(batch)
        table.slots_for_update(unique)
        table.mark_touched(unique)

    print("trainer: micro-batch of 2000 ids", percentiles(micro_batch, 500))
    print("trainer: take and acknowledge   ", percentiles(lambda _: table.ack_touched(table.take_touched().token), 20))


def bench_mapped(ids: np.ndarray, rng: np.random.Generator, directory: Path) -> None:
    """A replica's side, in mapped files, and the codec between."""
    rows = rng.normal(size=(ids.size, DIM)).astype(np.float32)
    writer = ModelWriter(directory, "bench")
    weights = {"w": np.ones(50_000, np.float32)}
    base = Applied(epoch=1, seq=-1, watermark_ms=0, base_id="base")
    started = time.perf_counter()
    writer.build({"user": TableImage(ids, rows, np.zeros(DIM, np.float32))}, weights, base, lineage_id="bench")
    print(f"mapped: build                    {time.perf_counter() - started:8.2f} s")
    reader = ModelReader(directory, "bench")
    uniform = [rng.choice(ids, REQUEST_ROWS) for _ in range(200)]
    zipf = [ids[np.minimum(rng.zipf(1.1, REQUEST_ROWS), ids.size) - 1] for _ in range(200)]
    print(f"mapped: read {REQUEST_ROWS} rows, uniform  ", percentiles(lambda i: reader.read({"user": uniform[i % 200]}), 2000))
    print(f"mapped: read {REQUEST_ROWS} rows, Zipf     ", percentiles(lambda i: reader.read({"user": zipf[i % 200]}), 2000))
    print("mapped: read 100 rows           ", percentiles(lambda i: reader.read({"user": uniform[i % 200][:100]}), 2000))
    print("mapped: dense, unchanged        ", percentiles(lambda _: reader.dense(), 2000))
    deltas = [delta(rng.choice(ids, DELTA_ROWS)) for _ in range(20)]
    body = DeltaBody(deltas[0].tables, weights)
    print(f"mapped: apply {DELTA_ROWS} rows         ", percentiles(lambda i: writer.apply(deltas[i % 20], base), 200))
    print("mapped: the same and 50 k weights", percentiles(lambda _: writer.apply(body, base), 200))
    for name, dtype in DTYPES.items():
        bench_codec(name, dtype, deltas[0])
    writer.close()


def bench_codec(name: str, dtype: delta_pb2.RowDtype, body: DeltaBody) -> None:
    """One row dtype of the codec."""
    encoded = encode_body(body, dtype)
    print(f"delta: encode {name} ({len(encoded) // 1000} kB)    ", percentiles(lambda _: encode_body(body, dtype), 200))
    print(f"delta: decode {name}              ", percentiles(lambda _: decode_body(encoded, dtype), 200))


def delta(ids: np.ndarray) -> DeltaBody:
    """Return a delta that sets the rows of ids [N], repeats allowed."""
    distinct = np.unique(ids)
    return DeltaBody({"user": TableDelta(distinct, np.ones((distinct.size, DIM), np.float32), np.empty(0, np.int64))})


def main() -> None:
    """Measure tables of the size asked for, by default a million rows."""
    num_rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    rng = np.random.default_rng(0)
    ids = rng.permutation(np.unique(rng.integers(-(2**63), 2**63 - 1, num_rows)))
    print(f"{ids.size} rows of {DIM} float32")
    bench_trainer_table(ids, rng)
    with tempfile.TemporaryDirectory() as directory:
        bench_mapped(ids, rng, Path(directory))


if __name__ == "__main__":
    main()
