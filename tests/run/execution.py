"""Runs lanes as processes, side by side; none outlives the run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence

from tests.run.containment import end_orphans
from tests.run.plan import ROOT, Lane
from tests.run.report import Outcome, read

_GRACE_S = 30.0  # for fixtures to stop the servers that they started


def run_phase(phase: Sequence[Lane], extra: Sequence[str], *, limit_s: float | None = None) -> list[Outcome]:
    """Run the lanes of one phase side by side; the first one's output is live, the others' follows when they end.

    Args:
        phase: at least one lane.
        extra: further arguments of pytest.
        limit_s: a lane that takes longer is ended and counts as failed; None lets it run (every test has a limit of its own).
    """
    first, *others = phase
    with contextlib.ExitStack() as running:
        beside = [running.enter_context(_started(lane, extra, is_live=False)) for lane in others]
        print(f"\n== {first.name} ({first.environment} environment)", flush=True)
        outcomes = [_ended(first, running.enter_context(_started(first, extra, is_live=True)), limit_s)]
        for lane, process in zip(others, beside, strict=True):
            outcome = _ended(lane, process, limit_s)
            print(f"\n== {lane.name} ({lane.environment} environment), ran beside it", flush=True)
            print(lane.log.read_text(encoding="utf-8", errors="replace"), flush=True)
            outcomes.append(outcome)
    end_orphans()
    return outcomes


class _Process:
    def __init__(self, lane: Lane, extra: Sequence[str], *, is_live: bool) -> None:
        lane.report.unlink(missing_ok=True)
        self.started = time.monotonic()
        with contextlib.ExitStack() as files:
            log = None if is_live else files.enter_context(lane.log.open("wb"))
            self.popen = subprocess.Popen(lane.command(extra), cwd=ROOT, stdout=log, stderr=None if log is None else subprocess.STDOUT)

    def stop(self) -> None:
        """Interrupt pytest, so that its fixtures stop what they started; kill it when that does not end it."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if self.popen.poll() is not None:
                return
            os.kill(self.popen.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):  # the next signal is the answer
                self.popen.wait(_GRACE_S)


@contextlib.contextmanager
def _started(lane: Lane, extra: Sequence[str], *, is_live: bool) -> Iterator[_Process]:
    process = _Process(lane, extra, is_live=is_live)
    try:
        yield process
    finally:
        process.stop()


def _ended(lane: Lane, process: _Process, limit_s: float | None) -> Outcome:
    stopped = ""
    try:
        process.popen.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.stop()
        stopped = f"ended by the run after {limit_s:.0f} s"
    return read(Outcome(lane, process.popen.returncode, time.monotonic() - process.started, stopped=stopped))
