"""Measure the rows of the bench, each beside its peer: `python -m loadtests.bench [--against FOLDER] [NAME …]`.

Writes build/bench/NAME.json and prints a Markdown table. Exit code 1 when a row that was asked for by name cannot be measured here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtests.bench.registry import ROWS
from loadtests.bench.row import LEAST_REPEATS, TABLE_HEAD, NotHere, Options, Result, Row

FOLDER = Path("build/bench")


def chosen(names: Sequence[str], rows: Sequence[Row]) -> list[Row]:
    """Return the rows that hold these names; all when there are none. Raises ValueError for a name that no row holds."""
    known = [name for row in rows for name in row.names]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no row is called {', '.join(unknown)}; there are {', '.join(known)}")
    return [row for row in rows if not names or set(names) & set(row.names)]


def main(argv: Sequence[str] | None = None, *, rows: Sequence[Row] = ROWS, folder: Path = FOLDER) -> int:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description="Measure what is promised about speed.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(name for row in rows for name in row.names)}; default: all")
    parser.add_argument("--against", type=Path, help="another checkout with environments of its own")
    parser.add_argument("--repeats", type=int, default=Options().repeats)
    given = parser.parse_args(argv)
    if given.repeats < LEAST_REPEATS:
        parser.error(f"--repeats: {given.repeats} are too few to say how much numbers spread; at least {LEAST_REPEATS}")
    if given.against is not None and not (given.against / ".venv").is_dir():
        parser.error(f"--against: {given.against} has no .venv; run make setup there")
    try:
        wanted = chosen(given.names, rows)
    except ValueError as error:
        parser.error(str(error))
    results: list[Result] = []
    missing = 0
    for row in wanted:
        try:
            results += row.measure(Options(against=given.against, repeats=given.repeats))
        except NotHere as error:
            missing += 1
            print(f"not measured: {', '.join(row.names)}: {error}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        (folder / f"{result.name}.json").write_text(result.written(), encoding="utf-8")
    print("\n".join([*TABLE_HEAD, *(result.line() for result in results)]))
    return 1 if missing and given.names else 0


if __name__ == "__main__":
    sys.exit(main())
