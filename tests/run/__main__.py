"""Runs the tests and closes with one summary: `make test`, `make test-deep`. Arguments that it does not know go to pytest.

python -m tests.run                            all tests but the deep ones
python -m tests.run tests/unit/mesh -k plan    these only
python -m tests.run --deep                     all deep ones
python -m tests.run --deep --budget-minutes 8 --rotate-by COMMIT   as many as fit, beginning at a place given by the commit
python -m tests.run --deep --list              their names and seconds
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence

from services.common.platform import openmp
from tests import limits, speed
from tests.run import containment, deep
from tests.run.execution import run_phase
from tests.run.plan import REPORTS, ROOT, lanes
from tests.run.report import Outcome, summarise, write_slowest
from tests.run.servers import SharedServers


def main(arguments: Sequence[str]) -> int:
    """Run what was asked for, print the summary and return 0 when every test passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.run", allow_abbrev=False)
    parser.add_argument("--deep", action="store_true", help="run the deep tests instead of the others")
    parser.add_argument("--budget-minutes", type=float, help="with --deep: begin no unit that does not fit any more")
    parser.add_argument("--rotate-by", default="", metavar="COMMIT", help="with --deep: the commit that decides where to begin")
    parser.add_argument("--unit", action="append", default=[], help="with --deep: run this unit alone; may be given more than once")
    parser.add_argument("--list", action="store_true", help="with --deep: print the units and run nothing")
    options, rest = parser.parse_known_args(arguments)
    if options.list:
        print("".join(f"{unit.seconds:5d} s  {unit.environment:<5}  {unit.name}: {' '.join(unit.paths)}\n" for unit in deep.UNITS), end="")
        return 0
    try:
        deep.named(options.unit)
    except ValueError as error:
        parser.error(f"--unit: {error}")
    paths = [word for word in rest if not word.startswith("-") and (ROOT / word.split("::", 1)[0]).exists()]
    extra = [word for word in rest if word not in paths]
    REPORTS.mkdir(parents=True, exist_ok=True)
    openmp.spin_shortly()  # torch's threads in several workers, on a machine that is full
    factor = _speed_factor()
    with SharedServers(REPORTS / "servers", with_mlflow=not (options.deep or paths)) as servers:
        os.environ.update(servers.variables)
        if options.deep:
            return deep.run(extra, factor=factor, budget_minutes=options.budget_minutes, commit=options.rotate_by, names=options.unit)
        return _run_all(paths, extra)


def _run_all(paths: Sequence[str], extra: Sequence[str]) -> int:
    started = time.monotonic()
    outcomes: list[Outcome] = []
    for phase in lanes(paths):
        outcomes += run_phase(phase, extra)
    write_slowest(outcomes, REPORTS / "slowest.md")
    return 0 if summarise(outcomes, time.monotonic() - started) else 1


def _speed_factor() -> float:
    """Measure the machine, unless its factor is given, and hand it to every test."""
    if limits.SPEED_FACTOR in os.environ:
        print(f"speed factor {limits.speed_factor():g}, as {limits.SPEED_FACTOR} says", flush=True)
    else:
        measured = speed.measure()
        os.environ[limits.SPEED_FACTOR] = str(measured.factor)
        print(measured, flush=True)
    return limits.speed_factor()


if __name__ == "__main__":
    os.chdir(ROOT)
    if containment.is_contained():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to it
        raise SystemExit(main(sys.argv[1:]))
    raise SystemExit(containment.run_contained([sys.executable, "-u", "-m", "tests.run", *sys.argv[1:]]))
