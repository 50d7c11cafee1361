"""A search from its options to its files: wires the other modules together."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch

from services.common.platform.clock import wall_ms
from services.common.platform.errors import ConfigurationError, ServiceError
from services.common.platform.secrets import without_credentials
from services.common.platform.settings import MlflowSettings, load_settings
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.event_files.ordered import WorkFolder
from services.trainer.held_out.curves import curves
from services.trainer.held_out.evaluation import COVERAGE
from services.trainer.held_out.report import compare
from services.trainer.held_out.side_by_side import side_by_side, verdict
from services.trainer.search.given import Given, begin
from services.trainer.search.measure import Measured, NotFinite, Objective, measure
from services.trainer.search.parts import Parts
from services.trainer.search.ray_workers import RaySettings, check_cluster, order_for, run_on_ray
from services.trainer.search.recorded import record_search
from services.trainer.search.remote import StudyDoor
from services.trainer.search.report import (
    SPEC_NAME,
    START,
    WINNER,
    changed_values,
    failures,
    files_of,
    lines,
    shown,
    spec_text,
    trial_rows,
    write,
)
from services.trainer.search.space import Space
from services.trainer.search.study import LOSSES, MEASURES, Study
from services.trainer.search.trials import Limits, Runner
from services.trainer.search.workers import check_parent, run_workers
from services.trainer.train import fingerprint
from services.trainer.training_run import EXPERIMENT

_DECISIVE = ("validation", "held_out", "scored_events", "active_users", "metric", "task", "pruner", "seed")


class NoTrial(Exception):
    """No trial was finished; says why."""


def search(options: argparse.Namespace) -> None:
    """Search, measure the winner, and write the files.

    Raises:
        ConfigurationError: options, spec, space or events cannot be searched with.
        NoTrial: all trials failed, or the time was over before the first one ended.
    """
    began_ms, began = wall_ms(), time.monotonic()
    if address := load_settings(RaySettings).ray_address:
        check_cluster(address)
    work = WorkFolder.beside(str(options.out / "search"))
    try:
        given = begin(options, work, say=_say)
        study = Study(
            options.out,
            given.space,
            seed=options.seed,
            pruner=options.pruner,
            fingerprint=fingerprint(decisive(options, given.space), given.space.start, given.history),
        )
        _measure_start(study, given)
        if taken := study.take_up():
            _say(f"going on: {len(study.trials())} trials are done, {taken} were interrupted and begin anew")
        _run_trials(options, study, given)
        rows = trial_rows(study)
        if not any(row["value"] is not None for row in rows):
            raise NoTrial("\n".join(failures(rows)) or "the time was over; give a longer --timeout-seconds")
        report, spec = _finish(options, study, given, rows)
    finally:
        work.close()
    report["ended"] = f"all of --trials {options.trials} are done" if len(rows) >= options.trials else "the time is over"
    report["seconds"] = round(time.monotonic() - began, 1)
    files = files_of(report) | {SPEC_NAME: spec}
    write(options.out, files)
    _say("\n".join(lines(report)))
    _say(f"written to {options.out}: {', '.join(files)} (make train SPEC={options.out / SPEC_NAME})")
    _record(options, report, files, began_ms)


def decisive(options: argparse.Namespace, space: Space) -> dict[str, Any]:
    """Return what decides, beside spec, events and program, what is drawn and what it is worth."""
    return {name: getattr(options, name) for name in _DECISIVE} | {
        "space": {key: parameter.model_dump(mode="json") for key, parameter in space.parameters.items()}
    }


def _measure_start(study: Study, given: Given) -> None:
    """Measure the spec that the search starts from, once; trials are told relative to it."""
    if study.start is not None:
        return
    try:
        found = measure(given.space.start, given.parts.trials, given.config)
        measures = found.by_task()
    except NotFinite as error:
        raise ConfigurationError(f"{given.space.start.source}: the spec that the search starts from cannot be learned: {error}") from error
    _say(f"the spec started from: {len(given.parts.trials.learned)} events learned, {found.seconds:.0f} s")
    study.set_start(measures, found.portions, parameters=found.parameters, seconds=found.seconds)


def objective_of(options: argparse.Namespace, study: Study, start: FeatureSpec) -> Objective:
    """Return how trials are told from one another.

    Raises:
        ConfigurationError: a task cannot be measured on the validation part.
    """
    noted: Mapping[str, Any] = study.start or {}
    tasks = [options.task] if options.task is not None else list(start.task_names)
    for task in tasks:
        if noted[MEASURES].get(task, {}).get(options.metric) is None:
            raise ConfigurationError(
                f"{options.metric} of task {task} cannot be told on the validation part: it has no labels of it, or of one kind; name "
                "another --task, or give a larger --validation"
            )
    return Objective(options.metric, tasks, noted[MEASURES], noted[LOSSES])


def _run_trials(options: argparse.Namespace, study: Study, given: Given) -> None:
    """Run the trials, until as many as wanted are done or the time is over."""
    objective = objective_of(options, study, given.space.start)
    deadline = None if options.timeout_seconds is None else time.monotonic() + options.timeout_seconds
    if address := load_settings(RaySettings).ray_address:
        shared = _shared(options, given.space, worker=0)
        door = StudyDoor(shared, tell=_say, deadline=deadline)
        run_on_ray(address, order_for(options, given.space, objective, given.history), door, options.jobs, tell=_say)
        study.take_up()
    elif options.jobs is not None and options.jobs > 1:

        def is_late() -> bool:
            return deadline is not None and time.monotonic() >= deadline

        # CLOCK_MONOTONIC is the same for all processes of a machine.
        run_workers(study, work_on_trials, (options, deadline, os.getpid()), options.jobs, is_over=is_late, tell=_say)
        study.take_up()
    # Behind workers: what is left where all of them ended too early.
    runner = Runner(study=study, parts=given.parts.trials, config=given.config, objective=objective, tell=_say)
    runner.run(Limits(trials=options.trials, deadline=deadline))


def _shared(options: argparse.Namespace, space: Space, *, worker: int) -> Study:
    """Return the study as one of several that draw at the same time has it."""
    return Study(options.out, space, seed=options.seed, pruner=options.pruner, fingerprint="", worker=worker)


def work_on_trials(options: argparse.Namespace, deadline: float | None, parent: int, number: int) -> None:
    """Run trials in a process of its own, until as many as wanted are done or the time is over."""
    torch.set_num_threads(1)
    work = WorkFolder()
    try:
        given = begin(options, work, say=_say_nothing)
        study = _shared(options, given.space, worker=number)
        runner = Runner(
            study=study,
            parts=given.parts.trials,
            config=given.config,
            objective=objective_of(options, study, given.space.start),
            tell=_say,
            check=check_parent(parent),
        )
        runner.run(Limits(trials=options.trials, deadline=deadline))
    except (ConfigurationError, ServiceError) as error:
        sys.exit(f"worker {number}: {without_credentials(str(error))}")
    finally:
        work.close()


def _finish(options: argparse.Namespace, study: Study, given: Given, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """Measure winner and start on the last part; return the report and the winner's spec."""
    space, done = given.space, [row for row in rows if row["value"] is not None]
    best = min(done, key=lambda row: (row["value"], row["number"]))
    is_better = best["value"] < 1.0
    values = best["values"] if is_better else {}
    _say("measuring winner and start on the last part")
    try:
        of_start = measure(space.start, given.parts.final, given.config, with_others=True)
        of_winner = measure(space.spec(values), given.parts.final, given.config, with_others=True) if is_better else of_start
    except NotFinite as error:
        raise ConfigurationError(f"winner (trial {best['number']}) and start cannot be measured on the last part: {error}") from error
    events = side_by_side({WINNER: of_winner.events, START: of_start.events})
    tasks = compare(events, WINNER)
    report = {
        "spec": str(options.spec),
        "space": {key: parameter.model_dump(mode="json", exclude_defaults=True) for key, parameter in space.parameters.items()},
        "options": {name: getattr(options, name) for name in (*_DECISIVE, "trials", "timeout_seconds", "jobs")},
        "metric": options.metric,
        "events": _sizes(given.parts, of_start),
        "start": study.start,
        "counts": {state: sum(row["state"] == state for row in rows) for state in ("complete", "ended early", "failed")},
        "trials": rows,
        "importances": study.importances(),
        "winner": {
            "trial": best["number"] if is_better else None,
            "values": values,
            "changed": changed_values(space, values),
            "called": f"trial {best['number']}, {shown(values)}" if is_better else f"the spec started from, {options.spec}",
            "parameters": of_winner.parameters,
            "start_parameters": of_start.parameters,
            "schema_hash": space.spec(values).schema_hash,
        },
        "test": tasks,
        "curves": curves(events, tasks, (WINNER, START)),
        "coverage": COVERAGE,
        "verdict": verdict(tasks, WINNER, START),
    }
    note = f"{report['winner']['called']} of a search over {space.source}, from {options.spec}; {len(rows)} trials, {options.metric}"
    return report, spec_text(space, values, note)


def _sizes(parts: Parts, final: Measured) -> dict[str, int]:
    return {
        "learned": len(parts.trials.learned),
        "validation": len(parts.trials.scored),
        "first": len(parts.final.learned),
        "test": len(parts.final.scored),
        "test_scored": len(final.events),
        "test_users": len(final.events.users),
    }


def _record(options: argparse.Namespace, report: Mapping[str, Any], files: Mapping[str, str], began_ms: int) -> None:
    """Write the search to MLflow. The files are there already: a server that does not take it is said, and no failure."""
    mlflow = load_settings(MlflowSettings)
    if not mlflow.mlflow_tracking_uri:
        return
    uri = mlflow.mlflow_tracking_uri.get_secret_value()
    try:
        run_id = record_search(uri, str(options.out), report, files, began_ms=began_ms, ended_ms=wall_ms())
    except ServiceError as error:
        print(f"not recorded: {without_credentials(str(error))}", file=sys.stderr, flush=True)
    else:
        _say(f"recorded in MLflow at {without_credentials(uri)}: experiment {EXPERIMENT}, run {run_id}")


def _say(line: str) -> None:
    print(line, flush=True)


def _say_nothing(_: str) -> None:
    """Other processes of the search read the same, and say it."""
