"""Trains a base from a file of events: `python -m services.trainer.train --data FILE --spec FILE --out URL` (`make train DATA=FILE`).

The file is Parquet (.parquet) or CSV with the columns user_id, item_id, kind, value, time (Unix seconds, or any date that pandas reads)
and, if the catalogue is known, title and categories (separated by "|", or a list). The base holds the learner's whole state, so that live
learning goes on from it, and the packed feature states for streams.features.backfill. Knows nothing about Kafka or Redis.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from services.common.events.limits import check_ids
from services.common.platform.artifacts import Manifest, write_artifact
from services.common.platform.clock import wall_ms
from services.common.platform.errors import ConfigurationError, ServiceError
from services.common.ranker.feature_records import pack_records
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.states import Interaction
from services.trainer.batch import BatchConfig, FeatureStates, Placed, replay_order, train_epoch
from services.trainer.learner import Learner, LearnerConfig

REQUIRED_COLUMNS = ("user_id", "item_id", "kind", "value", "time")
_ROOT = Path(__file__).resolve().parents[2]
_EXIT_BAD_CONFIGURATION = 2


@dataclass(frozen=True, slots=True)
class History:
    """A file of events: those to learn, in the order of time, and the categories of every item in the file."""

    interactions: list[Interaction]
    categories: dict[str, tuple[str, ...]]


def read_history(path: Path, spec: FeatureSpec, *, until_fraction: float = 1.0) -> History:
    """Read and check a file of events.

    Args:
        until_fraction: learn only this part of the events, the oldest; the cut splits no (user, second) block.
    Raises:
        ConfigurationError: the file is missing, lacks a column, or holds a value that cannot be learned; names file and column.
    """
    frame = _read_frame(path)
    missing = [name for name in REQUIRED_COLUMNS if name not in frame.columns]
    if missing:
        raise ConfigurationError(f"{path}: column {missing[0]!r} is missing; wanted: {', '.join(REQUIRED_COLUMNS)}[, title, categories]")
    if frame.empty:
        raise ConfigurationError(f"{path}: holds no events")
    frame = frame.assign(seconds=_seconds(frame["time"], path), value=_numbers(frame["value"], path, "value"))
    frame = frame.assign(user_id=_ids(frame["user_id"], path, "user_id"), item_id=_ids(frame["item_id"], path, "item_id"))
    unknown = sorted(set(frame["kind"].astype(str)) - set(spec.kinds))
    if unknown:
        raise ConfigurationError(f"{path}: kind {unknown[0]!r} is not in the feature spec (known: {', '.join(sorted(spec.kinds))})")
    frame = frame.sort_values("seconds", kind="stable").reset_index(drop=True)
    categories = _categories(frame)
    columns = (frame[name].tolist() for name in ("user_id", "item_id", "kind", "value", "seconds"))
    rows = [Interaction(user, item, str(kind), value, seconds * 1000) for user, item, kind, value, seconds in zip(*columns, strict=True)]
    return History(rows[: _cut(rows, until_fraction)], categories)


def _read_frame(path: Path) -> pd.DataFrame:
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, dtype={"user_id": str, "item_id": str}, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: cannot be read as {path.suffix or 'CSV'}: {' '.join(str(error).split())}") from error


def _seconds(column: pd.Series, path: Path) -> pd.Series:
    if pd.api.types.is_numeric_dtype(column):
        return _numbers(column, path, "time").astype(np.int64)
    try:
        moments = pd.to_datetime(column, utc=True)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path}: column 'time' is neither Unix seconds nor dates: {' '.join(str(error).split())}") from error
    if moments.isna().any():
        raise ConfigurationError(f"{path}: column 'time', event {int(moments.isna().argmax())}: no date")
    return (moments - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(seconds=1)


def _numbers(column: pd.Series, path: Path, name: str) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    wrong = ~np.isfinite(numbers.to_numpy())
    if wrong.any():
        at = int(wrong.argmax())
        raise ConfigurationError(f"{path}: column {name!r}, event {at}: {column.iloc[at]!r} is not a finite number")
    return numbers


def _ids(column: pd.Series, path: Path, name: str) -> pd.Series:
    ids = column.astype(str)
    check_ids(f"{path}: column {name!r}, events", ids.tolist(), ConfigurationError)
    return ids


def _categories(frame: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Return the categories of every item, in the order of first appearance; the last row of an item counts."""
    if "categories" not in frame.columns:
        return dict.fromkeys(frame["item_id"], ())
    return {item_id: _category_names(value) for item_id, value in zip(frame["item_id"], frame["categories"], strict=True)}


def _category_names(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(name for name in value.split("|") if name)
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(str(name) for name in value)
    return ()


def _cut(rows: Sequence[Interaction], fraction: float) -> int:
    cut = round(len(rows) * fraction)
    while 0 < cut < len(rows) and (rows[cut].user_id, rows[cut].time_ms) == (rows[cut - 1].user_id, rows[cut - 1].time_ms):
        cut += 1
    return cut


def train(spec: FeatureSpec, history: History, config: BatchConfig, learner_config: LearnerConfig) -> tuple[Learner, FeatureStates]:
    """Train from nothing and return the learner and the feature states after the last event; prints a line per pass."""
    learner = Learner(spec, learner_config)
    placed: list[Placed] = replay_order(history.interactions, config)
    states = FeatureStates(spec, history.categories)
    for epoch in range(config.epochs):
        started = time.monotonic()
        states, stats = train_epoch(spec, learner, placed, history.categories, config, epoch)
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    defaults = BatchConfig()
    parser = argparse.ArgumentParser(prog="python -m services.trainer.train", description="Train a base from a file of events.")
    parser.add_argument("--data", type=Path, required=True, help="Parquet or CSV file of events")
    parser.add_argument("--spec", type=Path, required=True, help="feature spec (YAML)")
    parser.add_argument("--out", required=True, help="fsspec URL of the folder to write")
    parser.add_argument("--until-fraction", type=float, default=1.0, help="learn only this part of the events, the oldest")
    parser.add_argument("--epochs", type=int, default=defaults.epochs, help="passes over the events")
    parser.add_argument("--active-users", type=int, default=defaults.active_users, help="sessions overlaid; 0 keeps the order of time")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    options = parser.parse_args(argv)
    # One thread: the order of sums, and so every bit of the weights, must not depend on the machine.
    torch.set_num_threads(1)
    try:
        if not 0 < options.until_fraction <= 1 or options.epochs < 1 or options.active_users < 0:
            raise ConfigurationError("--until-fraction must be in (0, 1], --epochs at least 1, --active-users not negative")
        spec = FeatureSpec.load(options.spec)
        history = read_history(options.data, spec, until_fraction=options.until_fraction)
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
                "passes": options.epochs,
                "state_hash": learner.state_hash(),
                "sources": sources_in_use(),
            },
        )
        artifact = write_artifact(options.out, manifest, base_arrays(learner, states))
    except (ConfigurationError, ServiceError) as error:
        print(f"configuration error: {error}", file=sys.stderr)
        return _EXIT_BAD_CONFIGURATION
    rows = ", ".join(f"{name} {len(table)}" for name, table in learner.tables.items())
    print(f"base written to {artifact.url}: {len(history.interactions)} events, rows: {rows}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
