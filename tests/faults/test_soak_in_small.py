"""`python -m loadtests.soak` for two and a half minutes on the ranking half: what fills up within minutes shows.

Descriptors, threads and lag are judged. Memory is measured and reported only: allocators and caches settle for longer than this runs, and
the fifteen minutes of loadtests/RESULTS.md are for that.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loadtests.bare_mesh import RANKING
from services.mesh.runner.environments import REPOSITORY_ROOT
from tests.limits import seconds

pytestmark = [pytest.mark.deep, pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(900)]

OPTIONS = ("--minutes", "2.5", "--warm-up", "60", "--every", "2", "--services", "ranking", "--recommend", "15", "--feedback", "3")
JUDGED = ("fds", "threads", "lag")


@dataclass(frozen=True, slots=True)
class Soak:
    """What it left."""

    out: Path
    code: int
    said: str
    found: dict[str, Any]


@pytest.fixture(scope="module")
def soak(tmp_path_factory: pytest.TempPathFactory) -> Soak:
    out = tmp_path_factory.mktemp("soak")
    command = [sys.executable, "-m", "loadtests.soak", *OPTIONS, "--out", str(out)]
    done = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=seconds(800), check=False)
    assert (out / "soak.json").exists(), done.stdout + done.stderr
    return Soak(out, done.returncode, done.stdout, json.loads((out / "soak.json").read_text()))


def test_no_call_fails_and_nothing_is_restarted(soak: Soak) -> None:
    assert soak.found["failed_calls"] == {} and soak.found["restarted"] == {}
    assert soak.found["calls"]["recommend"]["succeeded"] > 1000


def test_every_process_is_measured_and_neither_descriptors_nor_threads_nor_lag_grow(soak: Soak) -> None:
    measured = {(verdict["service"], verdict["measure"]) for verdict in soak.found["verdicts"]}
    for service in set(RANKING) - {"kafka"}:
        assert {(service, measure) for measure in ("rss_mib", "fds", "threads")} <= measured
    assert {("joiner", "lag"), ("features", "lag")} <= measured
    grown = [verdict for verdict in soak.found["verdicts"] if verdict["measure"] in JUDGED and not verdict["is_good"]]
    assert grown == [], soak.said


def test_the_exit_code_and_the_plot_say_the_same_as_the_report(soak: Soak) -> None:
    assert soak.code == (0 if all(verdict["is_good"] for verdict in soak.found["verdicts"]) else 1)
    assert (soak.out / "soak.png").read_bytes().startswith(b"\x89PNG")
