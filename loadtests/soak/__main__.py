"""Puts constant load on a mesh of its own and says whether anything grows: `python -m loadtests.soak [--minutes 15] [--services ranking]`.

Exits 0 when no process' memory, file descriptors, threads or consumer lag grows (Theil-Sen), 1 when something does or a call failed.
Writes soak.json, soak.png and the load's own files. KAFKA_HOME runs it on Apache Kafka; the embedded broker keeps its log in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from loadtests.bare_mesh import RANKING, bare_mesh
from loadtests.soak import report
from loadtests.soak.report import Series
from loadtests.soak.sampling import LagReader, usage_of
from loadtests.soak.trend import MIN_SAMPLES
from services.common.platform.errors import ConfigurationError
from services.common.platform.settings import exit_with_configuration_error
from services.mesh.runner.environments import REPOSITORY_ROOT
from services.mesh.runner.mesh import Mesh

# Memories that fill up for hours by design get a bound that a soak reaches within its warm-up, so that a leak can be told from them. The
# curator's answers take feedback for an hour, and what takes feedback is not committed: its lag.
_BOUNDS = {
    "TUNEMESH_CURATOR_WINDOW_MS": "180000",
    "TUNEMESH_JOINER_LATE_HORIZON_MS": "30000",
    "TUNEMESH_TRAINER_DEDUP_WINDOW_SAMPLES": "40000",
    "TUNEMESH_QUALITY_REMEMBERED_REQUESTS": "3000",
}
_END_LIMIT_S = 180.0


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15.0, help="of load (default 15)")
    parser.add_argument(
        "--warm-up", type=float, default=None, metavar="S", help="seconds that are not judged (default: a third, at most 240)"
    )
    parser.add_argument("--every", type=float, default=5.0, metavar="S", help="seconds between two samples (default 5)")
    parser.add_argument("--services", choices=("all", "ranking"), default="all", help="what runs (default all)")
    parser.add_argument("--recommend", default="20", metavar="RATE", help="recommendations a second (default 20)")
    parser.add_argument("--feedback", default="4", metavar="RATE", help="ratings a second by each of the two doors (default 4)")
    parser.add_argument("--streams", type=int, default=2, metavar="N", help="streams at once, when there is an llm (default 2)")
    parser.add_argument("--users", type=int, default=200, help="users to ask for: few, so that their rows are soon there (default 200)")
    parser.add_argument("--out", type=Path, default=Path("build/soak"), help="folder of the report and of the mesh (default build/soak)")
    return parser.parse_args(arguments)


def start_load(options: argparse.Namespace, mesh: Mesh, out: Path) -> subprocess.Popen[bytes]:
    """Start the load as a process of its own."""
    command = [sys.executable, "-m", "loadtests.load", "--run-dir", str(mesh.folder.path), "--out", str(out)]
    command += ["--seconds", str(60 * options.minutes), "--recommend", options.recommend, "--users", str(options.users)]
    command += ["--feedback-grpc", options.feedback, "--feedback-kafka", options.feedback, "--candidates", "50"]
    command += ["--streams", str(options.streams if "llm" in mesh.services() else 0)]
    with (out / "load.log").open("wb") as log:
        return subprocess.Popen(command, cwd=REPOSITORY_ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


class Recorder:
    """Takes samples until it is told to stop; one list a series."""

    def __init__(self, mesh: Mesh, lags: LagReader) -> None:
        """Of the mesh's running services."""
        self._mesh, self._lags = mesh, lags
        self._broker = "apache-kafka" if mesh.settings.broker == "kafka" else "tansu"
        self._points: dict[tuple[str, str], list[tuple[float, float]]] = {}

    def sample(self, at_s: float) -> None:
        """Take one sample of everything."""
        for name, pid in self._mesh.pids().items():
            usage = usage_of(pid)
            if usage is not None:
                for measure in ("rss_mib", "fds", "threads"):
                    self._add(self._broker if name == "kafka" else name, measure, at_s, getattr(usage, measure))
        for name, lag in self._lags.lags().items():
            self._add(name, "lag", at_s, lag)

    def series(self) -> list[Series]:
        """Return what was recorded, by service and measure."""
        return [Series(*key, *map(tuple, zip(*points, strict=True))) for key, points in sorted(self._points.items())]

    def _add(self, service: str, measure: str, at_s: float, value: float) -> None:
        self._points.setdefault((service, measure), []).append((at_s, value))


def soak(options: argparse.Namespace, out: Path, console: Console) -> int:
    """Run it all and return the exit code.

    Raises:
        ConfigurationError: the mesh or the load does not start.
    """
    warm_up_s = min(240.0, 20.0 * options.minutes) if options.warm_up is None else options.warm_up
    if 60 * options.minutes - warm_up_s < (MIN_SAMPLES + 1) * options.every:
        raise ConfigurationError(f"{options.minutes:g} minutes leave too few samples after {warm_up_s:g} s of warm-up: run longer")
    for name, value in _BOUNDS.items():
        os.environ.setdefault(name, value)
    names = RANKING if options.services == "ranking" else ()
    console.print(f"starting the mesh ({options.services}) in {out / 'mesh'}", highlight=False)
    with bare_mesh(out, services=names, durable_broker=bool(os.environ.get("KAFKA_HOME"))) as mesh, LagReader(mesh) as lags:
        restarts = mesh.restarts()
        load = start_load(options, mesh, out)
        try:
            recorder = record(options, mesh, lags, load, console)
            code = load.wait(timeout=_END_LIMIT_S)
        finally:
            if load.poll() is None:
                load.kill()
                load.wait()
        restarted = {name: count - restarts.get(name, 0) for name, count in mesh.restarts().items() if count != restarts.get(name, 0)}
    if code != 0:
        raise ConfigurationError(f"the load ended with code {code}; see {out / 'load.log'}")
    calls = json.loads((out / "summary.json").read_text())["calls"]
    verdicts = report.judge(recorder.series(), warm_up_s=warm_up_s, records_per_s=calls["recommend"]["planned"] / (60 * options.minutes))
    failed = {kind: found["failed"] for kind, found in calls.items() if found["failed"]}
    about = {"minutes": options.minutes, "warm_up_s": warm_up_s, "restarted": restarted, "failed_calls": failed, "calls": calls}
    report.write(out, verdicts, recorder.series(), warm_up_s=warm_up_s, about=about)
    report.show(verdicts, console)
    grown = [f"{verdict.service} {verdict.measure}" for verdict in verdicts if not verdict.is_good]
    console.print(f"restarted: {restarted or 'none'}; failed calls: {failed or 'none'}; report: {out / 'soak.json'}, {out / 'soak.png'}")
    console.print(f"GROWS: {', '.join(grown)}" if grown else "nothing grows")
    return 1 if grown or failed or restarted else 0


def record(options: argparse.Namespace, mesh: Mesh, lags: LagReader, load: subprocess.Popen[bytes], console: Console) -> Recorder:
    """Take samples while the load runs, and say how far it is every minute."""
    recorder = Recorder(mesh, lags)
    begin_s = time.monotonic()
    said_min = 0
    while load.poll() is None:
        at_s = time.monotonic() - begin_s
        if at_s >= 60 * options.minutes:
            break
        recorder.sample(at_s)
        if at_s // 60 > said_min:
            said_min = int(at_s // 60)
            console.print(f"  {said_min} of {options.minutes:g} minutes", highlight=False)
        time.sleep(max(0.0, options.every - (time.monotonic() - begin_s - at_s)))
    return recorder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a soak; bad configuration is one line and exit code 2."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    try:
        return soak(options, out, Console())
    except ConfigurationError as error:
        exit_with_configuration_error(error)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
