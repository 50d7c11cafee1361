"""Trains a base from events: `python -m services.trainer.train --data FILE|FOLDER --spec FILE --out URL` (`make train DATA=FILE`).

The files have the columns user_id, item_id, kind, value, time and, if the catalogue is known, title and categories, or others that
--columns names;
services.trainer.event_files says which formats are read, and what a cell means. The base holds the learner's whole state, so that live
learning goes on from it, and the packed feature states for streams.features.backfill. The last part of the events is scored before it is
learned, and the report of that (services.trainer.held_out) stands beside the base; with MLFLOW_TRACKING_URI set it is a run there as well.
Knows nothing about Kafka or Redis.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from services.common.platform.artifacts import Manifest, check_free, write_artifact
from services.common.platform.clock import wall_ms
from services.common.platform.errors import ConfigurationError, ServiceError
from services.common.platform.secrets import guard_output, without_credentials
from services.common.platform.settings import MlflowSettings, load_settings
from services.common.ranker.feature_records import pack_records
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.lineage import lineages, sources_of
from services.common.ranker.states import Interaction
from services.trainer.attribute_history import AttributeHistory, known_shares
from services.trainer.batch import FeatureStates
from services.trainer.event_files.history import History, coarse_cut, cut_by_time, read_history, remarks
from services.trainer.event_files.options import add_file_options, read_options
from services.trainer.event_files.ordered import WorkFolder
from services.trainer.held_out.evaluation import JSON_NAME, MIN_EVENTS, as_json, evaluate, report_files, write_report
from services.trainer.held_out.render import markdown, short
from services.trainer.held_out.replay import MAX_SCORED_EVENTS
from services.trainer.held_out.scored import LIVE
from services.trainer.learner import Learner, LearnerConfig
from services.trainer.passes import Passes, PassesConfig, Task, Trained
from services.trainer.replay_order import BatchConfig, order_remarks
from services.trainer.training_checkpoint import TrainingCheckpoints
from services.trainer.training_run import EXPERIMENT, record_run

_ROOT = Path(__file__).resolve().parents[2]
_EXIT_BAD_CONFIGURATION = 2
CHECKPOINT_EVENTS = 200_000
"""A checkpoint every few minutes; a shorter training writes none."""


def train(spec: FeatureSpec, history: History, config: BatchConfig, learner_config: LearnerConfig) -> tuple[Learner, FeatureStates]:
    """Train from nothing, all passes, and return the learner and the feature states after the last event; prints a line per pass."""
    task = Task(
        spec=spec,
        events=history.interactions,
        categories=history.categories,
        item_ids=list(history.categories),
        attributes=attributes_of(spec, history),
    )
    trained = Passes(task, config, learner_config).run()
    return trained.learner, trained.states


def attributes_of(spec: FeatureSpec, history: History) -> AttributeHistory | None:
    """Return what was known when, where the spec declares features."""
    return AttributeHistory(spec.plan, history.user_attributes, history.item_attributes) if spec.features else None


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
    add_file_options(parser)
    parser.add_argument("--out", required=True, help="fsspec URL of the folder to write")
    parser.add_argument("--until-fraction", type=float, default=1.0, help="learn only this part of the events, the oldest")
    parser.add_argument(
        "--epochs", type=int, default=defaults.epochs, help="passes over the events, at most; the best on the held-out part counts"
    )
    parser.add_argument("--patience", type=int, default=1, help="end after so many passes that were not better than the best before them")
    parser.add_argument(
        "--checkpoint-every",
        type=int,
        default=CHECKPOINT_EVENTS,
        help="events between checkpoints, from which the same command goes on; 0: none",
    )
    parser.add_argument("--active-users", type=int, default=defaults.active_users, help="sessions overlaid at once; 0: order of time")
    parser.add_argument(
        "--held-out", type=float, default=0.1, help="the last part of the events, scored before it is learned; 0: no report"
    )
    parser.add_argument("--scored-events", type=int, default=MAX_SCORED_EVENTS, help="of more held-out events, about so many are scored")
    parser.add_argument("--first-part-only", action="store_true", help="write the base as it was before the held-out part")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    guard_output(os.environ)
    options = _parser().parse_args(argv)
    # One thread: the order of sums, and so every bit of the weights, must not depend on the machine.
    torch.set_num_threads(1)
    try:
        _check(options)
        _run(options)
    except (ConfigurationError, ServiceError) as error:
        print(f"configuration error: {without_credentials(str(error))}", file=sys.stderr)
        return _EXIT_BAD_CONFIGURATION
    return 0


def _check(options: argparse.Namespace) -> None:
    if not 0 < options.until_fraction <= 1 or options.epochs < 1 or options.active_users < 0:
        raise ConfigurationError("--until-fraction must be in (0, 1], --epochs at least 1, --active-users not negative")
    if not 0 <= options.held_out < 1 or options.scored_events < 1:
        raise ConfigurationError("--held-out must be in [0, 1), 0 switches it off; --scored-events must be at least 1")
    if options.patience < 1 or options.checkpoint_every < 0:
        raise ConfigurationError("--patience must be at least 1, --checkpoint-every not negative; 0 writes none")
    if options.first_part_only and not options.held_out:
        raise ConfigurationError("--first-part-only leaves out the held-out part, and --held-out 0 says that there is none")


def _run(options: argparse.Namespace) -> None:
    check_free(options.out)
    # Events that do not fit into memory stand beside the base's place until it is written.
    work = WorkFolder.beside(options.out)
    try:
        _train(options, work)
    finally:
        work.close()


def _train(options: argparse.Namespace, work: WorkFolder) -> None:
    spec = FeatureSpec.load(options.spec)
    load_settings(MlflowSettings)  # a wrong setting ends the run before it learns
    began_ms, began = wall_ms(), time.monotonic()
    history = read_history(
        options.data,
        spec,
        replace(read_options(options), until_fraction=options.until_fraction),
        work=work,
        say=lambda line: print(line, flush=True),
    )
    seconds = {"reading": time.monotonic() - began}
    print_lines(remarks(history))
    first_part, last_part = parts_of(history, options.held_out)
    config = BatchConfig(epochs=options.epochs, active_users=options.active_users, seed=options.seed)
    print_lines(order_remarks(history.interactions, config))
    all_items = list(history.categories)
    # What is shown while the first part is learned are its own items: later ones would be learned as what nobody chooses.
    item_ids = list(dict.fromkeys(one.item_id for one in first_part)) if last_part else all_items
    task = Task(
        spec=spec,
        events=first_part,
        categories=history.categories,
        item_ids=item_ids,
        attributes=attributes_of(spec, history),
        held_out=last_part,
    )
    checkpoints = TrainingCheckpoints(spec, options.out, _fingerprint(options, spec, history)) if options.checkpoint_every else None
    passes = PassesConfig(patience=options.patience, checkpoint_events=options.checkpoint_every)
    began = time.monotonic()
    trained = Passes(task, config, LearnerConfig.of(spec, seed=options.seed), passes, checkpoints).run()
    seconds["training"] = time.monotonic() - began
    if options.first_part_only or not last_part:
        written = write_base(options.out, spec, history, trained, _shown(options), len(first_part))
    found: dict[str, Any] = {}
    if last_part:
        began = time.monotonic()
        found = evaluate(spec, trained.learner, trained.states, first_part, last_part, all_items, config, options.scored_events)
        seconds["held-out part"] = time.monotonic() - began
        if not options.first_part_only:
            written = write_base(options.out, spec, history, trained, _shown(options), len(history.interactions))
    report = {"base": written, "seconds": {name: round(value, 1) for name, value in seconds.items()}} | found
    files = report_files(report, markdown(report), report["tasks"], LIVE) if last_part else {JSON_NAME: as_json(report)}
    if last_part:
        publish_report(options.out, report, files, short(report))
    if checkpoints is not None:
        checkpoints.delete()
    record(options.out, report, files, began_ms)


def print_lines(lines: Iterable[str]) -> None:
    """Print what there is to say, a line each."""
    for line in lines:
        print(line, flush=True)


def record(out: str, report: Mapping[str, Any], files: Mapping[str, str], began_ms: int, subject: str = LIVE) -> None:
    """Write a training, and the files of its report, to MLflow, where one is set.

    The base is there already: a server that does not take it is said, and no failure.
    """
    mlflow = load_settings(MlflowSettings)
    if not mlflow.mlflow_tracking_uri:
        return
    uri = mlflow.mlflow_tracking_uri.get_secret_value()
    try:
        run_id = record_run(uri, without_credentials(out), report, files, began_ms=began_ms, ended_ms=wall_ms(), subject=subject)
    except ServiceError as error:
        print(f"not recorded: {without_credentials(str(error))}", file=sys.stderr, flush=True)
    else:
        print(f"recorded in MLflow at {without_credentials(uri)}: experiment {EXPERIMENT}, run {run_id}", flush=True)


def publish_report(out: str, report: Mapping[str, Any], files: Mapping[str, str], lines: Iterable[str]) -> None:
    """Write the files of the report beside the base, and print its short form."""
    write_report(out, files)
    print("\n".join(lines))
    print(f"report written to {without_credentials(out)}: {', '.join(files)}; {report['base']['learned']}", flush=True)


def _shown(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("epochs", "active_users", "seed", "held_out", "until_fraction")}


def _fingerprint(options: argparse.Namespace, spec: FeatureSpec, history: History) -> str:
    decisive = {name: getattr(options, name) for name in ("held_out", "epochs", "patience", "active_users", "seed")}
    return fingerprint(decisive, spec, history)


def fingerprint(decisive: Mapping[str, Any], spec: FeatureSpec, history: History) -> str:
    """Return a hash of all that decides the weights: events, spec, the options that are decisive, and the program's own code."""
    parts = [spec.model_dump(mode="json"), decisive, sources_in_use(), digest_of(history)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def digest_of(history: History) -> str:
    """Return a hash of all that was read from files."""
    digest = hashlib.sha256()
    for one in history.interactions:
        of_item = f"{one.user_id}\x00{one.item_id}\x00{one.position}"
        digest.update(f"{of_item}\x00{one.kind}\x00{one.value!r}\x00{one.time_ms}\x00{one.context!r}\n".encode())
    digest.update(json.dumps(list(history.categories.items())).encode())
    for versions in (history.user_attributes, history.item_attributes):
        digest.update(versions.digest())
    return digest.hexdigest()


def parts_of(history: History, held_out: float) -> tuple[Sequence[Interaction], Sequence[Interaction]]:
    """Return the part that is learned first, and the held-out one; none when it is off, or would be too small to say anything."""
    cut = cut_by_time(history.interactions, 1.0 - held_out)
    first_part, last_part = history.interactions[:cut], history.interactions[cut:]
    if held_out and (far_off := coarse_cut(len(history.interactions), 1.0 - held_out, cut)):
        print(f"--held-out {held_out:g}: {far_off}", flush=True)
    if first_part and len(last_part) >= MIN_EVENTS:
        return first_part, last_part
    if held_out:
        print(
            f"no held-out report: of {len(history.interactions)} events {len(last_part)} are left for it; it takes {MIN_EVENTS}", flush=True
        )
    return history.interactions, []


def write_base(
    out: str, spec: FeatureSpec, history: History, trained: Trained, options: Mapping[str, Any], num_events: int
) -> dict[str, Any]:
    """Write the base; return what the report says of it."""
    learner = trained.learner
    set_aside = {reason: count for reason, (count, _) in history.set_aside.items()}
    state_hash = learner.state_hash()
    manifest = Manifest(
        kind="base",
        model=spec.model,
        schema_hash=spec.schema_hash,
        lineage_id="",
        epoch=0,
        seq=-1,
        created_at_ms=wall_ms(),
        metadata={
            "events": num_events,
            "set_aside": set_aside,
            "passes": trained.best_pass,
            "state_hash": state_hash,
            "sources": sources_in_use(),
        },
    )
    artifact = write_artifact(out, manifest, base_arrays(learner, trained.states))
    rows = {name: len(table) for name, table in learner.tables.items()}
    described = ", ".join(f"{name} {count}" for name, count in rows.items())
    print(f"base written to {without_credentials(artifact.url)}: {num_events} events, rows: {described}", flush=True)
    whole = num_events == len(history.interactions)
    return {
        "model": spec.model,
        "network": spec.network.model_dump(mode="json"),
        "schema_hash": spec.schema_hash,
        "state_hash": state_hash,
        "reads": [f"{source.reference} ({source.topic})" for source in sources_of(lineages(spec))],
        "events": num_events,
        "learned": "The base contains all events: the held-out ones were learned after they were scored."
        if whole
        else "The base contains the first part only: the held-out events are not in it (--first-part-only).",
        "rows": rows,
        "features": _features(spec, history),
        "passes": {
            "made": trained.num_passes,
            "best": trained.best_pass,
            "held_out_losses": [round(one, 6) for one in trained.held_out_losses],
        },
        "set_aside": set_aside,
        "options": dict(options),
    }


def _features(spec: FeatureSpec, history: History) -> dict[str, Any]:
    """Return which columns the declared features make, and of which share of the events each field that they read was known."""
    known = known_shares(spec.plan, history.interactions, history.user_attributes, history.item_attributes)
    return {
        "columns": [*spec.plan.user_columns, *spec.plan.item_columns],
        "known": {name: round(share, 4) for name, share in known.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
