"""A mesh under `python -m loadtests.load`, and a hand that kills one process after the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from loadtests.load.calls import Call, read_calls
from services.mesh.runner.environments import REPOSITORY_ROOT
from services.mesh.runner.mesh import Mesh
from services.mesh.runner.state import ProcessId, ServiceState
from tests.limits import seconds
from tests.waiting import eventually


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill -9, in Unix seconds: when, and when the runner said that the service is well again."""

    name: str
    killed_s: float
    well_s: float

    def concerns(self, call: Call, *, settle_s: float = 0.0) -> bool:
        """Whether any part of the call lies between the kill and `settle_s` after the recovery."""
        return call.planned_s <= self.well_s + settle_s and call.ended_s >= self.killed_s


class Load:
    """The load as a process of its own; its calls can be read while it runs."""

    def __init__(self, out: Path, mesh: Mesh, *options: str) -> None:
        """Start it; it ends when it is told to."""
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        self._log = out / "load.log"
        command = [sys.executable, "-m", "loadtests.load", "--run-dir", str(mesh.folder.path), "--out", str(out)]
        command += ["--seconds", "3600", "--attempt-timeout", str(seconds(3)), "--deadline", str(seconds(20)), *options]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=REPOSITORY_ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def __enter__(self) -> Load:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def said(self) -> str:
        """Everything that it printed."""
        return self._log.read_text(errors="replace")

    def calls(self) -> list[Call]:
        """Return the calls that have ended."""
        path = self.out / "calls.jsonl"
        return list(read_calls(path)) if path.exists() else []

    def wait_for(self, kind: str, number: int, *, since_s: float = 0.0) -> None:
        """Return when so many calls of a kind that were due after `since_s` have succeeded."""

        def succeeded() -> int:
            assert self.process.poll() is None, f"the load ended:\n{self.said}"
            return sum(call.kind == kind and call.ok and call.planned_s >= since_s for call in self.calls())

        eventually(succeeded, lambda found: found >= number, limit_s=240, every_s=0.5)

    def end(self) -> list[Call]:
        """End the schedules, wait for the last answers and return all calls."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(timeout=seconds(180)) == 0, self.said
        return self.calls()


def kill_and_wait(mesh: Mesh, name: str) -> Kill:
    """kill -9 a service and return when the runner has started it again and finds it well."""
    before = mesh.services()[name]
    killed_s = time.time()
    os.kill(before.pid, signal.SIGKILL)
    return wait_until_well(mesh, name, killed_s, not_pid=before.pid)


def wait_until_well(mesh: Mesh, name: str, killed_s: float, *, not_pid: int = 0) -> Kill:
    """Return when a service that was killed runs, as another process than `not_pid`, and its health check says that it is well."""

    def now() -> ServiceState:
        return mesh.services()[name]

    def is_well(service: ServiceState) -> bool:
        return service.pid != not_pid and service.state == "healthy" and ProcessId(service.pid, service.start_ticks).is_alive

    eventually(now, is_well, limit_s=150)
    return Kill(name, killed_s, time.time())
