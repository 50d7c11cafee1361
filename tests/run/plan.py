"""What `make test` runs: its lanes, in which environment, which of them side by side, and in how many processes.

Phase one takes everything whose verdict does not depend on company: both environments side by side, each with workers of its own
(pytest-xdist). More workers than cores, since tests on real servers mostly wait. Phase two runs what measures or starts a whole mesh
(marks `alone` and `e2e`), one test after the other. Tests marked `deep` are not here: tests/run/deep.py. Knows nothing of what tests test.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
REPORTS = ROOT / "build" / "tests"
FOLDERS = ("unit", "contract", "integration", "faults", "fuzz", "e2e")

WITH_COMPANY = "not deep and not alone and not e2e"
ALONE = "not deep and (alone or e2e)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One pytest process: its name, environment, marker expression, test files or folders, and number of workers (0: itself)."""

    name: str
    environment: str
    marker: str
    paths: tuple[str, ...]
    workers: int = 0

    @property
    def report(self) -> Path:
        """Where pytest writes its verdicts (JUnit)."""
        return REPORTS / f"{self.name}.xml"

    @property
    def log(self) -> Path:
        """Where its output goes while another lane's is shown."""
        return REPORTS / f"{self.name}.log"

    def command(self, extra: Sequence[str] = ()) -> list[str]:
        """The argument vector; `extra` goes to pytest."""
        argv = [str(ROOT / ".venv" / self.environment / "bin" / "python"), "-u", "-m", "pytest", "-q", "-m", self.marker]
        argv += [f"--junitxml={self.report}", "-o", "junit_family=xunit1"]
        if self.workers:
            argv += ["-p", "tests.run.sharing", "-n", str(self.workers), "--dist", "loadscope", "--no-loadscope-reorder"]
        return [*argv, *extra, *self.paths]


def lanes(paths: Sequence[str] = (), cores: int | None = None) -> tuple[tuple[Lane, ...], ...]:
    """Return the phases of `make test`, each a tuple of lanes that run side by side.

    Args:
        paths: files, folders or node ids to run instead of all tests.
        cores: of the machine; None counts them.
    """
    chosen = tuple(paths) or tuple(str(TESTS / folder) for folder in FOLDERS if (TESTS / folder).exists())
    cores = cores or os.cpu_count() or 1
    beside = (
        Lane(name="light", environment="light", marker=f"not ml and {WITH_COMPANY}", paths=chosen, workers=cores + 1),
        Lane(name="ml", environment="ml", marker=f"ml and {WITH_COMPANY}", paths=chosen, workers=max(1, cores // 2)),
    )
    alone = tuple(paths) or tuple(str(path) for path in _files_marked("alone", "e2e"))
    return (beside, (Lane(name="alone", environment="light", marker=f"not ml and {ALONE}", paths=alone),))


def _files_marked(*marks: str) -> Iterator[Path]:
    pattern = re.compile(rf"\bmark\.({'|'.join(marks)})\b")
    for folder in FOLDERS:
        for path in sorted((TESTS / folder).rglob("test_*.py")):
            if pattern.search(path.read_text(encoding="utf-8")):
                yield path
