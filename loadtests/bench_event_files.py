"""How much memory reading a history takes, at two sizes: `.venv/ml/bin/python -m loadtests.bench_event_files [--rows 150000] [--times 4]`.

Events in no order of time, by a fixed number of users and items, are written as Parquet and as CSV. A process of its own reads a file and
goes through it once in the order in which it would be learned; its peak resident memory is that above what it had after its imports. The
same is done with the whole file as a list of events in memory: what is compared is what four times the rows add to each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.event_files.history import read_history
from services.trainer.replay_order import BatchConfig, replay_order

FORMATS = ("parquet", "csv")
STREAMED, WHOLE = "streamed", "whole"
NUM_USERS, NUM_ITEMS = 5_000, 2_000
_SPEC = "model_repo/ranker/feature_spec.yaml"
_BEGIN_S, _SPAN_S = 1_700_000_000, 90 * 86_400
_WRITTEN_ROWS = 50_000
_MIB = 1 << 20
# The dearer one of the two orders: events by user are sorted anew.
_OVERLAID = BatchConfig(active_users=100)


def write_events(folder: Path, kind: str, rows: int) -> Path:
    """Write events in no order of time, a part at a time; return the file."""
    path = folder / f"{rows}.{kind}"
    writer: Any = None
    for table in _tables(rows):
        if writer is None:
            writer = pq.ParquetWriter(path, table.schema) if kind == "parquet" else pacsv.CSVWriter(str(path), table.schema)
        writer.write_table(table)
    writer.close()
    return path


def _tables(rows: int) -> Iterator[Any]:
    rng = np.random.default_rng(0)
    for start in range(0, rows, _WRITTEN_ROWS):
        count = min(_WRITTEN_ROWS, rows - start)
        items_N = rng.integers(NUM_ITEMS, size=count)
        yield pa.table(
            {
                "user_id": [f"user-{number:08d}" for number in rng.integers(NUM_USERS, size=count)],
                "item_id": [f"item-{number:08d}" for number in items_N],
                "kind": np.where(rng.random(count) < 0.5, "rating", "click"),
                "value": rng.integers(1, 6, size=count).astype(np.float64),
                "time": _BEGIN_S + rng.integers(_SPAN_S, size=count),
                "title": [f"The title of item {number}, which nobody reads" for number in items_N],
                "categories": [f"group {number % 20}|group {number % 7}" for number in items_N],
            }
        )


def measure(path: Path, how: str) -> dict[str, float]:
    """Read a file in a process of its own; return {"mib": peak above what it began with, "seconds": of a processor, of the reading}."""
    command = [sys.executable, "-m", "loadtests.bench_event_files", "--child", how, str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def _child(how: str, path: Path) -> dict[str, float]:
    spec = FeatureSpec.load(_SPEC)
    before, started = _status_mib("VmRSS"), time.process_time()
    history = read_history(path, spec)
    seconds = time.process_time() - started
    if how == STREAMED:
        count = sum(1 for _ in replay_order(history.interactions, _OVERLAID))
    else:
        events = list(history.interactions)
        count = len(list(replay_order(events, _OVERLAID)))
    return {"mib": _status_mib("VmHWM") - before, "seconds": seconds, "events": count}


def _status_mib(name: str) -> float:
    """Return a number of /proc/self/status. VmHWM, unlike getrusage's ru_maxrss, begins anew with the program."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) * 1024 / _MIB


def compare(folder: Path, kind: str, rows: int, times: int) -> dict[str, dict[int, dict[str, float]]]:
    """Return what `measure` says, by how and by the number of rows."""
    found: dict[str, dict[int, dict[str, float]]] = {STREAMED: {}, WHOLE: {}}
    for count in (rows, times * rows):
        path = write_events(folder, kind, count)
        for how, measured in found.items():
            measured[count] = measure(path, how)
        path.unlink()
    return found


def growth_mib(measured: dict[int, dict[str, float]]) -> float:
    """Return what the larger file takes more than the smaller."""
    return measured[max(measured)]["mib"] - measured[min(measured)]["mib"]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each format, way and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=150_000)
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--child", nargs=2, metavar=("HOW", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        print(json.dumps(_child(options.child[0], Path(options.child[1]))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for kind in FORMATS:
            for how, measured in compare(Path(folder), kind, options.rows, options.times).items():
                for rows, one in measured.items():
                    print(
                        f"{kind:8} {how:9} {rows:>10,} rows: {one['mib']:7.0f} MiB, {rows / one['seconds']:10,.0f} rows a processor second",
                        flush=True,
                    )
                print(f"{kind:8} {how:9} growth: {growth_mib(measured):.0f} MiB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
