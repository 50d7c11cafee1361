"""Measures event -> learned: `python -m loadtests.bench_freshness [--against FOLDER] [--rates 5 150]`.

A broker in memory, the joiner, the trainer and the updater as processes, events at random times, and when each event was joined, covered by
a tick, published, and in the tables that requests read. With --against, another checkout takes turns with this one, round by round. Prints
a table of medians over the rounds, and writes build/bench/freshness.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from services.mesh.runner.environments import REPOSITORY_ROOT

_ROUND = Path(__file__).with_name("round.py")
_PARTS = ("joined", "covered by a tick", "published", "applied", "learned")


def run_round(checkout: Path, options: argparse.Namespace, rate: float, seed: int) -> dict[str, Any]:
    """Run one round over the code of a checkout.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="tunemesh-freshness-") as folder:
        arguments = ["--folder", folder, "--spec", str(REPOSITORY_ROOT / "model_repo" / "ranker" / "feature_spec.yaml")]
        arguments += ["--rate", str(rate), "--seconds", str(options.seconds), "--seed", str(seed)]
        environment = os.environ | {"PYTHONPATH": f"{checkout}:{checkout / 'protos' / 'gen'}"}
        done = subprocess.run(
            [sys.executable, "-P", str(_ROUND), *arguments], cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        raise RuntimeError(f"a round in {checkout} failed: {done.stderr[-2_000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return medians over rounds: percentiles of each part in seconds, and what an event cost."""
    middle = statistics.median
    parts = {
        part: {
            f"p{at}": middle(float(np.nanpercentile([event[part] for event in each["parts"]], at)) for each in rounds) for at in (50, 95)
        }
        for part in _PARTS
    }
    cpu = {name: middle(1e3 * each["cpu_s"][name] / each["events"] for each in rounds) for name in rounds[0]["cpu_s"]}
    return {
        "seconds": parts,
        "learned_p50": [round(float(np.nanpercentile([event["learned"] for event in each["parts"]], 50)), 3) for each in rounds],
        "missed": sum(each["events"] - sum(not math.isnan(event["learned"]) for event in each["parts"]) for each in rounds),
        "cpu_ms_per_event": cpu | {"all": middle(1e3 * sum(each["cpu_s"].values()) / each["events"] for each in rounds)},
        "cpu_all_range": [f(1e3 * sum(each["cpu_s"].values()) / each["events"] for each in rounds) for f in (min, max)],
        "deltas_per_s": middle(each["deltas"] / each["elapsed_s"] for each in rounds),
        "groups_per_micro_batch": middle(each["groups"] / max(each["micro_batches"], 1) for each in rounds),
    }


def print_table(rate: float, found: dict[str, dict[str, Any]]) -> None:
    """Print one rate's table."""
    print(f"\n{rate:g} events a second: seconds, p50 / p95")
    for part in _PARTS:
        cells = (f"{each['seconds'][part]['p50']:.2f} / {each['seconds'][part]['p95']:.2f}" for each in found.values())
        print(f"  {part:20s}" + "".join(f"{cell:>20s}" for cell in cells))
    for name in next(iter(found.values()))["cpu_ms_per_event"]:
        print(f"  ms of CPU, {name:9s}" + "".join(f"{each['cpu_ms_per_event'][name]:20.2f}" for each in found.values()))
    for key in ("deltas_per_s", "groups_per_micro_batch", "missed"):
        print(f"  {key:20.20s}" + "".join(f"{each[key]:20.2f}" for each in found.values()))
    print("  " + " " * 20 + "".join(f"{name:>20s}" for name in found), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench_freshness", description="Event to learned, by part.")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, with its .venv, to take turns with")
    parser.add_argument("--rates", type=float, nargs="+", default=[5.0, 150.0], help="events a second")
    parser.add_argument("--seconds", type=float, default=30.0, help="of traffic a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=REPOSITORY_ROOT / "build" / "bench" / "freshness.json")
    options = parser.parse_args(argv)
    checkouts = {"here": REPOSITORY_ROOT} | ({"against": options.against.resolve()} if options.against else {})
    result = {}
    for rate in options.rates:
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
        for number in range(options.rounds):
            for name, checkout in checkouts.items():
                rounds[name].append(run_round(checkout, options, rate, seed=number))
        result[f"{rate:g}"] = {name: summary(found) for name, found in rounds.items()}
        print_table(rate, result[f"{rate:g}"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
