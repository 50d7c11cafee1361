"""One demo in small for all end-to-end tests: both halves of the mesh, which runs on until the last of them is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.mesh.runner.run_folder import RunFolder
from tests.e2e.demo_run import DemoRun


@dataclass(frozen=True, slots=True)
class FinishedDemo:
    """What a demo left behind: its folder, its report, and the folder of the mesh that still runs."""

    out: Path
    report: dict[str, Any]
    run_dir: Path
    said: str

    def address(self, service: str) -> str:
        """Return `127.0.0.1:PORT` of a service's first port."""
        state = RunFolder(self.run_dir).read()
        assert state is not None, "the mesh is not running"
        return f"127.0.0.1:{next(iter(state.services[service].ports.values()))}"


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedDemo]:
    """`make demo KEEP=1` on fewer events; the tune is the whole one."""
    out = tmp_path_factory.mktemp("demo")
    with DemoRun(out, "--events", "900", "--rate", "25", "--keep") as run:
        yield FinishedDemo(out, run.report(timeout_s=1500), run.run_dir, run.said)
