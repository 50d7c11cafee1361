"""Trains a base from events: `python -m services.trainer.train --data FILE|FOLDER --spec FILE --out URL` (`make train DATA=FILE`).

The files have the columns user_id, item_id, kind, value, time and, if the catalogue is known, title and categories;
services.trainer.event_files says which formats are read, and what a cell means. The base holds the learner's whole state, so that live
learning goes on from it, and the packed feature states for streams.features.backfill. Knows nothing about Kafka or Redis.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from services.common.platform.artifacts import Manifest, write_artifact
from services.common.platform.clock import wall_ms
from services.common.platform.errors import ConfigurationError, ServiceError
from services.common.platform.secrets import guard_output, without_credentials
from services.common.ranker.feature_records import pack_records
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.attribute_history import AttributeHistory
from services.trainer.batch import BatchConfig, FeatureStates, Placed, replay_order, train_epoch
from services.trainer.event_files.history import History, ReadOptions, read_history, remarks
from services.trainer.event_files.times import UNIT_NAMES
from services.trainer.learner import Learner, LearnerConfig

_ROOT = Path(__file__).resolve().parents[2]
_EXIT_BAD_CONFIGURATION = 2


def train(spec: FeatureSpec, history: History, config: BatchConfig, learner_config: LearnerConfig) -> tuple[Learner, FeatureStates]:
    """Train from nothing and return the learner and the feature states after the last event; prints a line per pass."""
    learner = Learner(spec, learner_config)
    placed: list[Placed] = replay_order(history.interactions, config)
    states = FeatureStates(spec, history.categories)
    attributes = AttributeHistory(spec.plan, history.user_attributes, history.item_attributes) if spec.features else None
    for epoch in range(config.epochs):
        started = time.monotonic()
        states, stats = train_epoch(spec, learner, placed, history.categories, config, epoch, attributes=attributes)
        losses = dict(zip(spec.task_names, (stats.loss_by_task / stats.num_events).round(4).tolist(), strict=True))
        print(
            f"pass {epoch + 1}/{config.epochs}: {stats.num_events} events, loss per event {losses}, {time.monotonic() - started:.0f} s",
            flush=True,
        )
    return learner, states


def base_arrays(learner: Learner, states: FeatureStates) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a base: the learner's whole state and the packed feature states."""
    # A base is where replicas begin: nothing in it is still to be published as a delta.
    for table in learner.tables.values():
        table.ack_touched(table.take_touched().token)
    packed = pack_records(states.records())
    return learner.state_arrays() | {f"features/{name}": array for name, array in packed.items()}


def sources_in_use(root: Path = _ROOT) -> dict[str, str]:
    """Return SHA-256 by path, relative to `root`, of each of the project's own modules that this process has imported.

    A base carries them, so that whoever keeps it can tell whether today's code would have made another one.
    """
    named = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    # torch has modules whose __file__ is a name without a file.
    files = {Path(name).resolve() for name in named if Path(name).is_absolute() and Path(name).is_file()}
    own = sorted(file for file in files if file.is_relative_to(root) and ".venv" not in file.relative_to(root).parts)
    return {file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in own}


def _parser() -> argparse.ArgumentParser:
    defaults = BatchConfig()
    parser = argparse.ArgumentParser(prog="python -m services.trainer.train", description="Train a base from a file of events.")
    parser.add_argument("--data", type=Path, required=True, help="file or folder of events: Parquet, ORC, Arrow, CSV or JSON lines")
    parser.add_argument("--spec", type=Path, required=True, help="feature spec (YAML)")
    parser.add_argument("--out", required=True, help="fsspec URL of the folder to write")
    parser.add_argument("--until-fraction", type=float, default=1.0, help="learn only this part of the events, the oldest")
    parser.add_argument("--epochs", type=int, default=defaults.epochs, help="passes over the events")
    parser.add_argument("--active-users", type=int, default=defaults.active_users, help="sessions overlaid; 0 keeps the order of time")
    parser.add_argument("--time-unit", choices=UNIT_NAMES, help="of a column `time` of numbers; recognised when absent")
    parser.add_argument("--category-separator", help="between names in a text of `categories`; recognised when absent")
    parser.add_argument("--users", type=Path, help="file or folder of attributes of users: user_id, what the spec's features read[, time]")
    parser.add_argument("--items", type=Path, help="the same of items: item_id, …")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    guard_output(os.environ)
    options = _parser().parse_args(argv)
    # One thread: the order of sums, and so every bit of the weights, must not depend on the machine.
    torch.set_num_threads(1)
    try:
        if not 0 < options.until_fraction <= 1 or options.epochs < 1 or options.active_users < 0:
            raise ConfigurationError("--until-fraction must be in (0, 1], --epochs at least 1, --active-users not negative")
        spec = FeatureSpec.load(options.spec)
        history = read_history(
            options.data,
            spec,
            ReadOptions(
                until_fraction=options.until_fraction,
                time_unit=options.time_unit,
                category_separator=options.category_separator,
                users=options.users,
                items=options.items,
            ),
        )
        print("\n".join(remarks(history)), flush=True)
        config = BatchConfig(epochs=options.epochs, active_users=options.active_users, seed=options.seed)
        learner, states = train(spec, history, config, LearnerConfig(seed=options.seed))
        manifest = Manifest(
            kind="base",
            model=spec.model,
            schema_hash=spec.schema_hash,
            lineage_id="",
            epoch=0,
            seq=-1,
            created_at_ms=wall_ms(),
            metadata={
                "events": len(history.interactions),
                "set_aside": {reason: count for reason, (count, _) in history.set_aside.items()},
                "passes": options.epochs,
                "state_hash": learner.state_hash(),
                "sources": sources_in_use(),
            },
        )
        artifact = write_artifact(options.out, manifest, base_arrays(learner, states))
    except (ConfigurationError, ServiceError) as error:
        print(f"configuration error: {without_credentials(str(error))}", file=sys.stderr)
        return _EXIT_BAD_CONFIGURATION
    rows = ", ".join(f"{name} {len(table)}" for name, table in learner.tables.items())
    print(f"base written to {without_credentials(artifact.url)}: {len(history.interactions)} events, rows: {rows}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
