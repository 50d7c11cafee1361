"""The main job: `make demo [PART=ranker|llm]`, or `python -m loadtests.demo [--part PART] [--events N] [--keep] [--out FOLDER]`.

First the ranker: trains a base on the first 60 % of MovieLens-100K, starts the mesh without Docker, replays the rest as live traffic and
shows what learning from it gains. Then the language model: answers questions about the catalogue, is taught ten facts by demonstrations,
and shows what it answers before and after. Writes report.json and report.png; exits 0 when every phase went well.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from loadtests.demo import base, llm, ranker, report
from loadtests.demo.phases import Phases
from services.common.platform.errors import ConfigurationError
from services.common.platform.settings import EXIT_BAD_CONFIGURATION
from services.mesh.runner.mesh import Mesh

_TELEMETRY_SAMPLE_RATIO = "0.02"


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("all", "ranker", "llm"), default="all", help="run one part alone")
    parser.add_argument("--events", type=int, default=20_000, help="live ratings to replay (at most 40,000)")
    parser.add_argument("--rate", type=float, default=150.0, help="ratings per second on average")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder of the report, the logs and the kept base")
    parser.add_argument("--keep", action="store_true", help="leave the mesh running; `make down` stops it")
    parser.add_argument("--run-dir", type=Path, default=None, help="folder of the mesh's state, logs and volumes")
    parser.add_argument("--free-ports", action="store_true", help="use ports that are free now, not the stated ones")
    parser.add_argument("--base-events", type=int, default=None, help="train the base on the last so many ratings only (quick, worse)")
    parser.add_argument("--base-epochs", type=int, default=None, help="passes over the base's events")
    parser.add_argument("--tune-steps", type=int, default=None, help="steps of the language model's tune (fewer: quick, worse)")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run all phases and return the report.

    Raises:
        ConfigurationError: something cannot start; one line.
        RuntimeError: a phase did not come to its end; one line.
    """
    console = Console()
    phases = Phases(console)
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    # The clients' libraries log reconnects; the terminal is for the demo.
    logging.basicConfig(filename=out / "client.log", filemode="w", format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True)
    with phases("prepare", "MovieLens-100K, split by time"):
        data = base.load(base_events=options.base_events)
        evaluations = llm.write_evaluations(data, out / "evaluations")
    result: dict[str, Any] = {}
    base_folder: Path | None = None
    if options.part != "llm":
        with phases("base", f"the ranker on the first {len(data.base):,} ratings (kept for the next run)"):
            base_folder, reused = base.train_or_reuse(data, out / "cache", log=out / "train.log", epochs=options.base_epochs)
        result["base"] = {"events": len(data.base), "reused": reused}
    with Mesh(
        env=_environment(options, out, base_folder, evaluations),
        # One that is kept lives where `make status` and `make down` look for it.
        run_dir=options.run_dir or (None if options.keep else out / "mesh"),
        services=llm.SERVICES if options.part == "llm" else ranker.SERVICES,
        keep=options.keep,
        free_ports=options.free_ports,
    ) as mesh:
        with phases(
            "start", "the services, without Docker" if options.part == "llm" else "broker, Redis, Triton and the services, without Docker"
        ):
            mesh.up()
        if base_folder is not None:
            folder = base_folder
            result |= _on_loop(lambda: ranker.RankerPart(options, out, data, folder, mesh, phases).run())
            report.print_summary(result, console)
            report.write_json(result, out / "report.json")
        if options.part == "all":
            with phases("start llm", "the language model, retriever, prompt assembler, curator, tuner and MLflow"):
                mesh.start(*llm.SERVICES)
        if options.part != "ranker":
            result["llm"] = _on_loop(lambda: llm.LlmPart(options, data, mesh, phases, console).run())
            report.print_llm_summary(result["llm"], console)
    result["phases_s"] = phases.seconds
    report.write_json(result, out / "report.json")
    plot = "" if options.part == "llm" else f"   plot: {out / 'report.png'}"
    console.print(f"report: {out / 'report.json'}{plot}   logs: {mesh.folder.logs}", highlight=False, soft_wrap=True)
    return result


def _environment(options: argparse.Namespace, out: Path, base_folder: Path | None, evaluations: Path) -> dict[str, str]:
    """What the demo sets differently; what the caller's environment sets is left as it is."""
    defaults = ranker.MESH_ENV | llm.MESH_ENV | {"TUNEMESH_TELEMETRY_SAMPLE_RATIO": _TELEMETRY_SAMPLE_RATIO}
    if options.tune_steps is not None:
        defaults["TUNEMESH_TUNER_NUM_STEPS"] = str(options.tune_steps)
    return {name: os.environ.get(name) or value for name, value in defaults.items()} | {
        "TUNEMESH_TRAINER_INITIAL_BASE": str(base_folder or ""),
        "TUNEMESH_TRAINER_ON_LINEAGE_CHANGE": "adopt",
        "TUNEMESH_TUNER_EVALUATIONS_DIR": str(evaluations),
        "TUNEMESH_TELEMETRY_DIR": str(out / "telemetry"),
    }


def _on_loop(main: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    async def called() -> dict[str, Any]:  # gRPC channels belong to the loop that they are made in
        return await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(called())


def main() -> None:
    """Run the demo; Ctrl-C stops every process that it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run(parse_arguments(sys.argv[1:]))
    except ConfigurationError as error:
        print(f"demo: {error}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_CONFIGURATION) from None
    except RuntimeError as error:
        print(f"demo: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
