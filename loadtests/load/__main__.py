"""Puts open-loop load on the running mesh: `python -m loadtests.load [--recommend 20] [--streams 2] [--seconds 60] …`, or `make load`.

Writes, into a folder, Locust's HTML report, a plot of latency percentiles over time (PNG), a JSON summary and one JSON line a call.
Rates are "20" (a second) or stages "10x30,40x30". Latency counts from when a call was due. Knows nothing of the mesh's insides.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import gevent.monkey


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.load", description=__doc__.splitlines()[0])
    rates = parser.add_argument_group("what is asked (calls a second: RATE, or RATExSECONDS,RATExSECONDS,…; 0: none)")
    rates.add_argument("--recommend", default="20", metavar="RATE", help="Recommend (default 20)")
    rates.add_argument("--generate", default="0", metavar="RATE", help="Generate, as streams that begin on a schedule (default 0)")
    rates.add_argument(
        "--streams", type=int, default=None, metavar="N", help="Generate, N streams at once (default 2 when the mesh has an llm)"
    )
    rates.add_argument("--feedback-kafka", default="5", metavar="RATE", help="ratings of answers, straight to Kafka (default 5)")
    rates.add_argument(
        "--feedback-grpc", default="5", metavar="RATE", help="ratings of answers, through the feedback collector (default 5)"
    )
    rates.add_argument("--seconds", type=float, default=60.0, help="how long a plain RATE lasts, and streams (default 60)")
    rates.add_argument("--spacing", choices=("even", "poisson"), default="even", help="of the arrivals (default even)")
    rates.add_argument("--users", type=int, default=500, help="users to ask for (default 500)")
    rates.add_argument("--candidates", type=int, default=100, help="candidates that a Recommend names; 0: the mesh recalls (default 100)")
    rates.add_argument("--task", default="", help="task of Generate (default: the mesh's)")
    rates.add_argument("--max-tokens", type=int, default=48, help="longest answer of Generate (default 48)")
    rates.add_argument("--seed", type=int, default=0)
    limits = parser.add_argument_group("limits")
    limits.add_argument("--attempt-timeout", type=float, default=3.0, metavar="S", help="of one attempt (default 3)")
    limits.add_argument("--deadline", type=float, default=20.0, metavar="S", help="of a call with its retries (default 20)")
    limits.add_argument("--stream-timeout", type=float, default=120.0, metavar="S", help="of a stream (default 120)")
    limits.add_argument("--max-outstanding", type=int, default=1000, metavar="N", help="calls of one kind under way (default 1000)")
    where = parser.add_argument_group("where")
    where.add_argument(
        "--run-dir", type=Path, default=Path(os.environ.get("TUNEMESH_MESH_RUN_DIR") or "build/mesh"), help="of the running mesh"
    )
    where.add_argument("--router", default="", metavar="HOST:PORT")
    where.add_argument("--collector", default="", metavar="HOST:PORT")
    where.add_argument("--kafka", default=os.environ.get("KAFKA_BOOTSTRAP_SERVERS", ""), metavar="HOST:PORT,…")
    where.add_argument("--out", type=Path, default=Path("build/load"), help="folder of the report (default build/load)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and report; 0 when any call succeeded, 1 when none did, 2 for wrong options."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    # Before anything else makes a lock or a socket, and before gRPC's first channel.
    gevent.monkey.patch_all()
    import grpc.experimental.gevent

    grpc.experimental.gevent.init_gevent()
    from loadtests.load import run

    return run.main(options)


if __name__ == "__main__":
    raise SystemExit(main())
