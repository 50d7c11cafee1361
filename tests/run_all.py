"""Runs every test in the environment that it needs and closes with one summary: `make test` (TEST_ARGS go to pytest).

Tests marked `ml` run in .venv/ml, all others in .venv/light. On two cores the quick ones of both run side by side, since their results do
not depend on time; those that start servers run alone, and the whole mesh last.
Knows nothing about what the tests test.
"""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "build" / "tests"
NOTHING_COLLECTED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One pytest process: its name, environment, folders under tests/ and marker expression."""

    name: str
    environment: str
    folders: tuple[str, ...]
    marker: str

    @property
    def report(self) -> Path:
        return REPORTS / f"{self.name}.xml"

    @property
    def log(self) -> Path:
        return REPORTS / f"{self.name}.log"

    def command(self, extra: list[str]) -> list[str]:
        folders = [str(ROOT / "tests" / folder) for folder in self.folders if (ROOT / "tests" / folder).exists()]
        argv = [str(ROOT / ".venv" / self.environment / "bin" / "python"), "-u", "-m", "pytest", "-q", "-m", self.marker]
        return [*argv, f"--junitxml={self.report}", "-o", "junit_family=xunit1", *extra, *folders]


@dataclass(slots=True)
class Outcome:
    """What one run gave."""

    run: Run
    code: int
    seconds: float
    counts: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    slowest: list[tuple[float, str]] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return self.code in (0, NOTHING_COLLECTED)


QUICK, SERVERS, MESH = ("unit", "contract"), ("integration", "faults"), ("e2e",)
PHASES: tuple[tuple[Run, ...], ...] = (
    (
        Run(name="quick-light", environment="light", folders=QUICK, marker="not ml and not deep"),
        Run(name="quick-ml", environment="ml", folders=QUICK, marker="ml and not deep"),
    ),
    (Run(name="servers-light", environment="light", folders=SERVERS, marker="not ml and not deep"),),
    (Run(name="servers-ml", environment="ml", folders=SERVERS, marker="ml and not deep"),),
    (Run(name="mesh", environment="light", folders=MESH, marker="not ml and not deep"),),
)


def main(extra: list[str]) -> int:
    """Run all phases, print the summary and return 0 when every test passed."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    outcomes: list[Outcome] = []
    for phase in PHASES:
        outcomes += run_phase(phase, extra)
    summarise(outcomes, time.monotonic() - started)
    return 0 if all(outcome.is_good for outcome in outcomes) and any(outcome.counts["passed"] for outcome in outcomes) else 1


def run_phase(phase: tuple[Run, ...], extra: list[str]) -> list[Outcome]:
    """Run the processes of one phase side by side; the first one's output is live, the others' follows when they end."""
    first, *others = phase
    beside: list[tuple[Run, subprocess.Popen[bytes], float]] = []
    for run in others:
        run.report.unlink(missing_ok=True)
        with run.log.open("wb") as log:
            process = subprocess.Popen(run.command(extra), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        beside.append((run, process, time.monotonic()))
    print(f"\n== {first.name} ({first.environment} environment)", flush=True)
    first.report.unlink(missing_ok=True)
    begin = time.monotonic()
    code = subprocess.run(first.command(extra), cwd=ROOT, check=False).returncode
    outcomes = [read(Outcome(first, code, time.monotonic() - begin))]
    for run, process, begin in beside:
        code = process.wait()
        print(f"\n== {run.name} ({run.environment} environment), ran beside it", flush=True)
        print(run.log.read_text(encoding="utf-8", errors="replace"), flush=True)
        outcomes.append(read(Outcome(run, code, time.monotonic() - begin)))
    return outcomes


def read(outcome: Outcome) -> Outcome:
    """Fill in the counts, failures, skips and times from the run's report; a run without a report has none."""
    if not outcome.run.report.exists():
        return outcome
    for case in ET.parse(outcome.run.report).getroot().iter("testcase"):
        where = f"{case.get('file') or case.get('classname')}::{case.get('name')}"
        kinds = {child.tag: child for child in case}
        kind = next((tag for tag in ("error", "failure", "skipped") if tag in kinds), "passed")
        outcome.counts[kind] += 1
        outcome.slowest.append((float(case.get("time") or 0.0), where))
        if kind in ("error", "failure"):
            outcome.failed.append(where)
        elif kind == "skipped":
            outcome.skipped.append(f"{where}: {kinds['skipped'].get('message')}")
    return outcome


def summarise(outcomes: list[Outcome], seconds: float) -> None:
    """Print one table, every failure, every skip with its reason, and the verdict as the last line."""
    print(f"\n{'=' * 30} all tests {'=' * 30}")
    for outcome in outcomes:
        counts = ", ".join(f"{outcome.counts[kind]} {kind}" for kind in ("passed", "failure", "error", "skipped") if outcome.counts[kind])
        verdict = "" if outcome.is_good else f"   exit code {outcome.code}"
        print(f"  {outcome.run.name:<16} {outcome.seconds:6.0f} s   {counts or 'no tests'}{verdict}")
    for title, lines in (
        ("slowest", list(_slowest(outcomes))),
        ("skipped", _all(outcomes, "skipped")),
        ("FAILED", _all(outcomes, "failed")),
    ):
        if lines:
            print(f"{title}:")
            print("".join(f"  {line}\n" for line in lines), end="")
    total: Counter[str] = sum((outcome.counts for outcome in outcomes), Counter())
    bad = total["failure"] + total["error"]
    is_good = all(outcome.is_good for outcome in outcomes) and total["passed"] > 0
    verdict = "PASSED" if is_good else "FAILED"
    print(f"{verdict}: {total['passed']} passed, {bad} failed, {total['skipped']} skipped in {seconds:.0f} s", flush=True)


def _slowest(outcomes: list[Outcome]) -> Iterator[str]:
    timed = sorted((entry for outcome in outcomes for entry in outcome.slowest), reverse=True)
    return (f"{seconds:6.1f} s  {where}" for seconds, where in timed[:5])


def _all(outcomes: list[Outcome], name: str) -> list[str]:
    return [line for outcome in outcomes for line in getattr(outcome, name)]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
