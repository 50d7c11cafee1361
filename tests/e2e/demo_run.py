"""Runs the demo in small as a user would, in a process of its own, and reads what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.mesh.runner.environments import REPOSITORY_ROOT
from services.mesh.runner.run_folder import RunFolder
from services.mesh.runner.state import MeshState

_SMALL_BASE = ("--base-events", "6000", "--base-epochs", "1")
# The tests say that not one answer is degraded and not one feedback an orphan: that must hold on a machine that stands still for a second.
_PATIENT = {
    "TUNEMESH_RECOMMENDER_REDIS_TIMEOUT_MS": "3000",
    "TUNEMESH_RECOMMENDER_TRITON_TIMEOUT_MS": "5000",
    "TUNEMESH_JOINER_WINDOW_MS": "3000",
}


class DemoRun:
    """One demo process on free ports, its output in `out`, its mesh in `out/mesh`; with `--keep` the mesh runs until the block is left."""

    def __init__(self, out: Path, *options: str, sample_ratio: float = 1.0) -> None:
        """Start it."""
        self.out, self.run_dir = out, out / "mesh"
        self._log = out / "demo.log"
        env = os.environ | _PATIENT | {"TUNEMESH_TELEMETRY_SAMPLE_RATIO": str(sample_ratio), "PYTHONUNBUFFERED": "1"}
        command: Sequence[str] = (sys.executable, "-m", "loadtests.demo", "--free-ports", *_SMALL_BASE, *options)
        command = [*command, "--out", str(out), "--run-dir", str(self.run_dir)]
        out.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=REPOSITORY_ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def __enter__(self) -> DemoRun:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it, and with it all that it started."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=180)
        down = [sys.executable, "-m", "services.mesh", "down", "--run-dir", str(self.run_dir)]
        subprocess.run(down, cwd=REPOSITORY_ROOT, check=True, timeout=180)

    @property
    def said(self) -> str:
        """Everything that it printed."""
        return self._log.read_text(errors="replace")

    def mesh(self) -> MeshState | None:
        """What the runner says, None before it has started."""
        return RunFolder(self.run_dir).read()

    def wait_for_replay(self, *, events: int, timeout_s: float) -> None:
        """Return when the frozen copy has scored some events: traffic flows."""
        deadline = time.monotonic() + timeout_s
        scored = self.out / "frozen.jsonl"
        while not scored.exists() or scored.read_bytes().count(b"\n") < events:
            assert self.process.poll() is None, f"the demo ended before its replay:\n{self.said}"
            assert time.monotonic() < deadline, f"no replay after {timeout_s} s:\n{self.said}"
            time.sleep(0.3)

    def report(self, *, timeout_s: float) -> dict[str, Any]:
        """Wait for its end, which must be a good one, and return report.json."""
        assert self.process.wait(timeout=timeout_s) == 0, self.said
        report: dict[str, Any] = json.loads((self.out / "report.json").read_text())
        return report
