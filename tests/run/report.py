"""What came of a run: read from pytest's reports, and told in one summary whose last line is the verdict."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.run.plan import Lane

NUM_SLOWEST = 20
_ALL_PASSED, _NOTHING_COLLECTED = 0, 5
# The only things that a machine may lack; tests/contract/test_tests.py holds every skip in the tests to them.
SKIP_REASONS = re.compile(r"\bKAFKA_HOME\b|\bGPU\b|\bDocker\b|\bTUNEMESH_TEST_BROKER\b")


@dataclass(slots=True)
class Outcome:
    """What one lane gave; `stopped` says why the run ended it, empty when it ended by itself."""

    lane: Lane
    code: int
    seconds: float
    stopped: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    slowest: list[tuple[float, str]] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether all its tests passed, or skipped for a reason that counts."""
        return self.code in (_ALL_PASSED, _NOTHING_COLLECTED) and not self.stopped and not self.wrongly_skipped

    @property
    def wrongly_skipped(self) -> list[str]:
        """Skips for want of anything but KAFKA_HOME, a GPU or Docker."""
        return [line for line in self.skipped if not SKIP_REASONS.search(line.partition(": ")[2])]


def read(outcome: Outcome) -> Outcome:
    """Fill in the counts, failures, skips and times from the lane's report; a lane without a report has none."""
    if not outcome.lane.report.exists():
        return outcome
    for case in ET.parse(outcome.lane.report).getroot().iter("testcase"):
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


def slowest(outcomes: Sequence[Outcome]) -> list[tuple[float, str]]:
    """The tests that took longest, with what their fixtures took where they were the first to need them; the longest first."""
    return sorted((entry for outcome in outcomes for entry in outcome.slowest), reverse=True)[:NUM_SLOWEST]


def write_slowest(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write them as the table of tests/README.md."""
    rows = [f"| {seconds:.1f} | `{where}` |\n" for seconds, where in slowest(outcomes)]
    path.write_text("| seconds | test |\n|---:|---|\n" + "".join(rows), encoding="utf-8")


def summarise(outcomes: Sequence[Outcome], seconds: float, *, remark: str = "") -> bool:
    """Print one table, the slowest tests, every skip with its reason, every failure, and the verdict with the remark as the last line.

    Returns:
        Whether everything passed, and something ran.
    """
    print(f"\n{'=' * 30} all tests {'=' * 30}")
    for outcome in outcomes:
        counts = ", ".join(f"{outcome.counts[kind]} {kind}" for kind in ("passed", "failure", "error", "skipped") if outcome.counts[kind])
        verdict = "" if outcome.is_good else f"   exit code {outcome.code}"
        print(f"  {outcome.lane.name:<28} {outcome.seconds:6.0f} s   {counts or 'no tests'}{verdict} {outcome.stopped}".rstrip())
    for title, lines in (
        ("slowest (with the fixtures that they were first to need)", [f"{taken:6.1f} s  {where}" for taken, where in slowest(outcomes)]),
        ("skipped", [line for outcome in outcomes for line in outcome.skipped]),
        ("FAILED: skipped for want of what `make setup` makes", [line for outcome in outcomes for line in outcome.wrongly_skipped]),
        ("FAILED", [line for outcome in outcomes for line in outcome.failed]),
    ):
        if lines:
            print(f"{title}:")
            print("".join(f"  {line}\n" for line in lines), end="")
    total: Counter[str] = sum((outcome.counts for outcome in outcomes), Counter())
    bad = total["failure"] + total["error"]
    is_good = all(outcome.is_good for outcome in outcomes) and (total["passed"] > 0 or not outcomes)
    verdict = "PASSED" if is_good else "FAILED"
    print(f"{verdict}: {total['passed']} passed, {bad} failed, {total['skipped']} skipped in {seconds:.0f} s{remark}", flush=True)
    return is_good
