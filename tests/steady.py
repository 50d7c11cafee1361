"""Whether the tests are steady: `make test` several times in a row, then beside a load that keeps every core busy.

    python tests/steady.py [--runs 5] [--loaded 2] [--command "make test"]

Writes build/tests/steady.json and each run's output beside it, prints a table, and exits with 1 when a run failed or when the runs did not
all pass and skip the same number of tests. A run fails by itself on a skip for want of anything but a GPU, Docker or KAFKA_HOME, and no
test is repeated (tests/contract/test_tests.py), so green means green at the first attempt.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "tests"
VERDICT = re.compile(r"^(PASSED|FAILED): (\d+) passed, (\d+) failed, (\d+) skipped in (\d+) s", flags=re.MULTILINE)
FACTOR = re.compile(r"^speed factor ([\d.]+)", flags=re.MULTILINE)
BUSY = "while True: pass"


@dataclass(frozen=True, slots=True)
class Run:
    """What one `make test` gave; seconds are wall time, set-up included."""

    number: int
    is_loaded: bool
    seconds: float
    code: int
    verdict: str
    passed: int
    failed: int
    skipped: int
    speed_factor: float

    @property
    def is_good(self) -> bool:
        """Whether it passed."""
        return self.code == 0 and self.verdict == "PASSED" and self.passed > 0 and self.failed == 0


def read_output(text: str, *, number: int, is_loaded: bool, seconds: float, code: int) -> Run:
    """Take the verdict and the speed factor from a run's output; without a verdict it has none."""
    verdicts, factors = VERDICT.findall(text), FACTOR.findall(text)
    verdict, passed, failed, skipped, _ = verdicts[-1] if verdicts else ("none", 0, 0, 0, 0)
    factor = float(factors[-1]) if factors else float("nan")
    return Run(number, is_loaded, round(seconds, 1), code, verdict, int(passed), int(failed), int(skipped), factor)


def is_steady(runs: Sequence[Run]) -> bool:
    """Whether every run passed, and all the same tests."""
    return bool(runs) and all(run.is_good for run in runs) and len({(run.passed, run.skipped) for run in runs}) == 1


def table(runs: Sequence[Run]) -> str:
    """The runs, one a line."""
    lines = ["run  beside a load  seconds  speed factor  passed  failed  skipped  verdict"]
    for run in runs:
        beside = "yes" if run.is_loaded else "no"
        counts = f"{run.passed:6d}  {run.failed:6d}  {run.skipped:7d}"
        lines.append(f"{run.number:3d}  {beside:<13}  {run.seconds:7.0f}  {run.speed_factor:12g}  {counts}  {run.verdict} ({run.code})")
    return "\n".join(lines)


@contextlib.contextmanager
def load(num_processes: int) -> Iterator[None]:
    """Keep so many cores busy."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(num_processes)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_once(command: Sequence[str], number: int, *, is_loaded: bool) -> Run:
    """Run it, its output shown and kept."""
    started = time.monotonic()
    lines: list[str] = []
    with load(os.cpu_count() or 1) if is_loaded else contextlib.nullcontext():
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        seconds = time.monotonic() - started
    text = "".join(lines)
    (FOLDER / f"steady-{number}.log").write_text(text, encoding="utf-8")
    return read_output(text, number=number, is_loaded=is_loaded, seconds=seconds, code=process.returncode)


def main(arguments: Sequence[str]) -> int:
    """Run all, write the record after each, print the table."""
    parser = argparse.ArgumentParser(description="whether the tests are steady")
    parser.add_argument("--runs", type=int, default=5, help="runs in a row")
    parser.add_argument("--loaded", type=int, default=2, help="further runs beside a load on every core")
    parser.add_argument("--command", default="make test", help="what to run")
    options = parser.parse_args(arguments)
    FOLDER.mkdir(parents=True, exist_ok=True)
    runs: list[Run] = []
    for number in range(1, options.runs + options.loaded + 1):
        runs.append(run_once(shlex.split(options.command), number, is_loaded=number > options.runs))
        record = {"command": options.command, "is_steady": is_steady(runs), "runs": [asdict(run) for run in runs]}
        (FOLDER / "steady.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"\n{table(runs)}\n", flush=True)
    print("STEADY" if is_steady(runs) else "NOT STEADY", flush=True)
    return 0 if is_steady(runs) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
