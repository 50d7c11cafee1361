"""Wide data, the whole way: `python -m loadtests.wide write FOLDER --rows 200000`, then `make train` and `make up`, then `… ask FOLDER`.

`write` makes impressions.parquet, items.parquet, spec.yaml, and last.parquet: the newest impressions with how probable each click was in
truth, which no training reads. `ask` asks a running mesh about those, reports what came of each, and says how near the mesh's order comes
to that of the truth, and whether it is beyond what anyone could do who has not found the planted interaction.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from loadtests.wide.ask import ask
from loadtests.wide.world import World, spec_of
from services.common.platform.errors import ConfigurationError
from services.common.ranker.network_spec import NETWORK_NAMES
from tunemesh_client import Client, TunemeshError

_LAST_SHARE = 0.1
_MAX_ASKED = 2_000


def write(folder: Path, world: World, network: str) -> None:
    """Write the files."""
    folder.mkdir(parents=True, exist_ok=True)
    num_learned = round(world.num_rows * (1.0 - _LAST_SHARE))
    num_written, writer = 0, None
    last: deque[pa.Table] = deque()
    for batch in world.batches():
        learned = batch.shown.slice(0, max(num_learned - num_written, 0))
        if writer is None:
            writer = pq.ParquetWriter(folder / "impressions.parquet", learned.schema)
        writer.write_table(learned)
        num_written += len(learned)
        if len(learned) < len(batch.shown):
            with_truth = batch.shown.append_column("truth", pa.array(batch.truth_N)).append_column("without", pa.array(batch.without_N))
            last.append(with_truth.slice(len(learned)))
            if sum(map(len, list(last)[1:])) >= _MAX_ASKED:
                last.popleft()
    if writer is not None:
        writer.close()
    newest = pa.concat_tables(last)
    pq.write_table(newest.slice(max(len(newest) - _MAX_ASKED, 0)), folder / "last.parquet")
    pq.write_table(world.items(), folder / "items.parquet")
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec_of(world, network), sort_keys=False), encoding="utf-8")
    sizes = world.sizes().values()
    print(f"{folder}: {num_written:,} impressions; {len(sizes)} categories of {min(sizes):,} to {max(sizes):,} values; network {network}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.wide", description="Wide data, the whole way.")
    commands = parser.add_subparsers(dest="command", required=True)
    written = commands.add_parser("write", help="make the files that `make train` reads")
    written.add_argument("folder", type=Path)
    written.add_argument("--rows", type=int, default=200_000, help="impressions (default 200,000)")
    written.add_argument("--largest", type=int, default=10_000_000, help="values of the largest category (default ten million)")
    written.add_argument("--network", choices=NETWORK_NAMES, default="dcn_din")
    asked = commands.add_parser("ask", help="ask a running mesh about the newest impressions, and report what came of each")
    asked.add_argument("folder", type=Path, help="where `write` wrote")
    asked.add_argument("--router", default="127.0.0.1:50051")
    asked.add_argument("--collector", default="127.0.0.1:50053")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "write":
            if options.rows < 100 or options.largest < 10:
                raise ConfigurationError("--rows must be at least 100, --largest at least 10")
            write(options.folder, World(options.rows, options.largest), options.network)
        else:
            with Client(options.router, options.collector) as mesh:
                print(ask(mesh, pq.read_table(options.folder / "last.parquet")))
    except (ConfigurationError, TunemeshError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
