"""Another shape of data, the whole way: `python -m loadtests.open_bandit write FOLDER --wheel obp-0.4.1-py3-none-any.whl`, `… ask FOLDER`.

`write` makes impressions.parquet, items.parquet and spec.yaml of the Open Bandit logs, for `make train`. `ask` asks a running mesh, for the
impressions of the last part of the logs that stood at the first place, how probable a click is, and reports what came of each, so that the
mesh goes on learning; then it compares the sum of what was predicted with the number of clicks.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from loadtests.open_bandit.ask import ask
from loadtests.open_bandit.logs import impressions, items
from services.common.platform.errors import ConfigurationError
from tunemesh_client import Client, TunemeshError

_SPEC = Path(__file__).with_name("spec.yaml")
HELD_OUT = 0.3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.open_bandit", description="The Open Bandit logs, the whole way.")
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="make the files that `make train` reads")
    write.add_argument("folder", type=Path, help="where to write them")
    write.add_argument("--wheel", type=Path, required=True, help="obp-0.4.1-py3-none-any.whl (`pip download --no-deps obp==0.4.1`)")
    asked = commands.add_parser("ask", help="ask a running mesh about the last part of the logs, and report what came of it")
    asked.add_argument("folder", type=Path, help="where `write` wrote")
    asked.add_argument("--router", default="127.0.0.1:50051")
    asked.add_argument("--collector", default="127.0.0.1:50053")
    asked.add_argument(
        "--held-out", type=float, default=HELD_OUT, help=f"the last part of the logs that is asked about (default {HELD_OUT})"
    )
    return parser


def write(folder: Path, wheel: Path) -> None:
    """Write the files; raises ConfigurationError when the wheel is another one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("impressions", impressions(wheel)), ("items", items(wheel))):
        pq.write_table(table, folder / f"{name}.parquet")
        print(f"{folder}/{name}.parquet: {len(table):,} rows: {', '.join(table.column_names)}")
    shutil.copy(_SPEC, folder / "spec.yaml")
    print(f"{folder}/spec.yaml: what they mean")


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "write":
            write(options.folder, options.wheel)
        else:
            with Client(options.router, options.collector) as mesh:
                print(ask(mesh, pq.read_table(options.folder / "impressions.parquet"), options.held_out))
    except (ConfigurationError, TunemeshError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
