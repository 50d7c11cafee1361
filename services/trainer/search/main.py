"""Searches a better feature spec: `python -m services.trainer.search.main --data … --spec FILE --out FOLDER` (`make search DATA=…`).

Trials are specs with other values at some keys (`--space FILE`, else a default space). They learn the first part of the events and are
compared on the part behind it; those that fall behind end early. The winner alone is measured on the last part, beside the spec that the
search started from. Writes report.json, report.md with its figures, and best_spec.yaml, which `make train SPEC=` takes. A search that was
killed goes on when the same command is started again. With RAY_ADDRESS set, trials run on that Ray cluster.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from services.common.platform.errors import ConfigurationError, ServiceError
from services.common.platform.secrets import guard_output, without_credentials
from services.trainer.event_files.options import add_file_options
from services.trainer.held_out.replay import MAX_SCORED_EVENTS
from services.trainer.held_out.report import COMPARED
from services.trainer.replay_order import BatchConfig
from services.trainer.search.command import NoTrial, search
from services.trainer.search.study import PRUNERS, held

_EXIT_NO_TRIAL = 1
_EXIT_BAD_CONFIGURATION = 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.trainer.search.main", description="Search a better feature spec.")
    add_file_options(parser)
    parser.add_argument("--out", required=True, help="folder of this machine for the trials, the report and best_spec.yaml")
    parser.add_argument(
        "--space", type=Path, help="YAML: which keys of the spec are searched, and their values; a default space when absent"
    )
    parser.add_argument("--trials", type=int, default=30, help="specs that are tried, beside the one given")
    parser.add_argument("--timeout-seconds", type=float, help="end the trials after so long; what is measured at the end comes on top")
    parser.add_argument(
        "--jobs",
        type=int,
        help="processes that run trials: one, with which the same seed gives the same trials; with RAY_ADDRESS as many as the cluster has "
        "processors",
    )
    parser.add_argument("--metric", choices=COMPARED, default="log_loss", help="by which trials are compared, on the validation part")
    parser.add_argument("--task", help="of which task; the mean over all tasks when absent")
    parser.add_argument(
        "--pruner", choices=PRUNERS, default="median", help="which trials end early: those behind the median, half of all …"
    )
    parser.add_argument("--validation", type=float, default=0.1, help="the part of the events that trials are compared on")
    parser.add_argument("--held-out", type=float, default=0.1, help="the part behind it, which only the winner is measured on")
    parser.add_argument("--scored-events", type=int, default=MAX_SCORED_EVENTS, help="of more events of a part, about so many are scored")
    parser.add_argument("--active-users", type=int, default=BatchConfig().active_users, help="sessions overlaid at once; 0: order of time")
    parser.add_argument("--seed", type=int, default=0, help="of weights, candidates, and what is drawn")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    guard_output(os.environ)
    options = _parser().parse_args(argv)
    # One thread: the order of sums, and so every bit of the weights, must not depend on the machine.
    torch.set_num_threads(1)
    try:
        _check(options)
        options.out = Path(options.out)
        with held(options.out):
            search(options)
    except NoTrial as error:
        print(f"no trial was finished:\n{without_credentials(str(error))}", file=sys.stderr)
        return _EXIT_NO_TRIAL
    except (ConfigurationError, ServiceError) as error:
        print(f"configuration error: {without_credentials(str(error))}", file=sys.stderr)
        return _EXIT_BAD_CONFIGURATION
    return 0


def _check(options: argparse.Namespace) -> None:
    if "://" in options.out:
        raise ConfigurationError(f"--out {options.out}: the trials stand in a database file, which takes a folder of this machine")
    if options.trials < 1 or not 1 <= (options.jobs or 1) <= 64 or options.scored_events < 1 or options.active_users < 0:
        raise ConfigurationError("--trials and --scored-events must be at least 1, --jobs in [1, 64], --active-users not negative")
    if options.timeout_seconds is not None and not options.timeout_seconds > 0:
        raise ConfigurationError("--timeout-seconds must be above 0; leave it out for no limit")
    if not (options.validation > 0 and options.held_out > 0 and options.validation + options.held_out < 1):
        raise ConfigurationError("--validation and --held-out must be above 0, and together below 1: the rest is learned")


if __name__ == "__main__":
    sys.exit(main())
