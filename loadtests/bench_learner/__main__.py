"""Measures the learner on samples of the demo, each way in a process of its own, in turn: python -m loadtests.bench_learner.

Prints a table and writes build/bench/learner.json: {name, ours, peer, ratio, unit, n}, medians, with the spread beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtests.bench_learner.recorded import record_demo
from services.common.ranker.feature_spec import FeatureSpec
from services.mesh.runner.environments import REPOSITORY_ROOT

_WAYS = Path(__file__).with_name("ways.py")
# What the learner did on one core before it was made faster: 46.7 µs of a step and 12.8 µs of intake a sample.
BEFORE_SAMPLES_PER_S = 16_800.0


class Way:
    """A process that runs one way whenever it is asked."""

    def __init__(self, name: str, checkout: Path, arguments: Sequence[str]) -> None:
        """Start it, over the code of `checkout`."""
        self.name = name
        self.runs: list[dict[str, float]] = []
        # One thread each: what is compared is the work.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = os.environ | threads | {"PYTHONPATH": f"{checkout}:{checkout / 'protos' / 'gen'}"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WAYS), *arguments],
            cwd=checkout,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self) -> dict[str, float]:
        """Run it once and return its numbers."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}")
        numbers: dict[str, float] = json.loads(line)
        return numbers

    def rates(self, what: str) -> list[float]:
        """Return `what` ("samples", "steps") per second of processor time of each run."""
        return [run[what] / run["cpu_s"] for run in self.runs]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def measure(ways: Sequence[Way], repeats: int) -> None:
    """Run all ways in turn `repeats` times, after one run each that does not count (compiled kernels, caches)."""
    for repeat in range(repeats + 1):
        for way in ways:
            numbers = way.run()
            if repeat:
                way.runs.append(numbers)


def row(name: str, ours: Sequence[float], peer: Sequence[float], unit: str) -> dict[str, Any]:
    """Return one entry of the result: medians, the ratio's median over the runs, and the spread of the rates."""
    ratios = [one / other for one, other in zip(ours, peer, strict=True)]
    return {
        "name": name,
        "ours": round(statistics.median(ours), 1),
        "peer": round(statistics.median(peer), 1),
        "ratio": round(statistics.median(ratios), 3),
        "unit": unit,
        "n": len(ours),
        "ours_range": [round(min(ours), 1), round(max(ours), 1)],
        "peer_range": [round(min(peer), 1), round(max(peer), 1)],
    }


def results(ways: Mapping[str, Way], before: str) -> list[dict[str, Any]]:
    """Return the entries of the result file, of the ways that were run."""
    ours = ways["epoch"].rates("samples")
    old = ways["before"].rates("samples") if before else [BEFORE_SAMPLES_PER_S] * len(ours)
    rows = [
        row("learner_samples", ours, old, "samples/s of one core"),
        row("learner_torch", ours, ways["torch"].rates("samples"), "samples/s of one core"),
        row("learner_step_torch", ways["step"].rates("samples"), ways["torch"].rates("samples"), "samples/s of one core"),
    ]
    few, *others = [way for name, way in ways.items() if name.startswith("partitions_")]
    for other in others:
        name = f"learner_{other.name}"
        rows.append(row(f"{name}_samples", other.rates("samples"), few.rates("samples"), "samples/s of one core"))
        rows.append(
            row(f"{name}_steps", [run["steps"] for run in other.runs], [run["steps"] for run in few.runs], "steps for the same samples")
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench_learner", description="Samples a second that one core learns.")
    parser.add_argument("--spec", type=Path, default=REPOSITORY_ROOT / "model_repo" / "ranker" / "feature_spec.yaml")
    parser.add_argument("--events", type=int, default=2_000, help="live events of MovieLens")
    parser.add_argument("--events-per-tick", type=int, default=60, help="the demo's 120 a second at two ticks a second")
    parser.add_argument(
        "--partitions", type=int, nargs="+", default=[2, 10, 100], help="of samples.v1; the first is compared with the others"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--before", default="", metavar="CHECKOUT", help="folder with another commit, to run beside this one")
    parser.add_argument("--out", type=Path, default=REPOSITORY_ROOT / "build" / "bench" / "learner.json")
    options = parser.parse_args(argv)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    samples = options.out.with_name("learner_samples.npz")
    count = record_demo(FeatureSpec.load(options.spec), samples, options.events, options.events_per_tick)
    print(f"{count} samples of {options.events} events", flush=True)
    shared = ["--spec", str(options.spec.resolve()), "--samples", str(samples.resolve())]
    ways = {name: Way(name, REPOSITORY_ROOT, [name, *shared]) for name in ("epoch", "step", "torch")}
    if options.before:
        ways["before"] = Way("before", Path(options.before).resolve(), ["epoch", *shared])
    for number in options.partitions:
        name = f"partitions_{number}"
        ways[name] = Way(name, REPOSITORY_ROOT, ["epoch", *shared, "--partitions", str(number)])
    try:
        measure(list(ways.values()), options.repeats)
    finally:
        for way in ways.values():
            way.close()
    for name, way in ways.items():
        rates, first = way.rates("samples"), way.runs[0]
        loss = first["loss"] / first["samples"]
        spread = f"({min(rates):,.0f} to {max(rates):,.0f})"
        print(f"{name:15} {statistics.median(rates):9,.0f} samples/s {spread}, {first['steps']} steps, loss {loss:.5f}")
    found = results(ways, options.before)
    for one in found:
        print(f"{one['name']:32} {one['ours']:>10,} against {one['peer']:>10,}: {one['ratio']} ({one['unit']})")
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
