"""Trains a small base with a large teacher beside it: `python -m services.trainer.distill.main --data … --spec STUDENT --teacher TEACHER
--out URL` (`make distill DATA=… SPEC=… TEACHER=…`).

The base is one like that of `make train`, of the student alone: the teacher is not kept. The report says what teaching was worth on events
that nobody had learned, beside the same student without a teacher, and what both cost to score.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from services.common.platform.artifacts import check_free
from services.common.platform.clock import wall_ms
from services.common.platform.errors import ConfigurationError, ServiceError
from services.common.platform.secrets import guard_output, without_credentials
from services.common.platform.settings import MlflowSettings, load_settings
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.distill.costs import NUM_ITEMS, costs_ms, requests
from services.trainer.distill.lessons import ALONE, STUDENT, TEACHER, Taught, check_fits, teach
from services.trainer.distill.report import lines, markdown
from services.trainer.event_files.history import History, read_history, remarks
from services.trainer.event_files.options import add_file_options, read_options
from services.trainer.event_files.ordered import WorkFolder
from services.trainer.held_out.curves import curves
from services.trainer.held_out.evaluation import COVERAGE, described, report_files, scored
from services.trainer.held_out.replay import MAX_SCORED_EVENTS
from services.trainer.held_out.report import compare
from services.trainer.held_out.scored import ScoredEvents
from services.trainer.held_out.side_by_side import side_by_side, verdict
from services.trainer.passes import Task, Trained, states_behind
from services.trainer.replay_order import BatchConfig, order_remarks
from services.trainer.train import attributes_of, parts_of, print_lines, publish_report, record, write_base

_EXIT_BAD_CONFIGURATION = 2
_TIMED_EVENTS = 20
_MAX_WEIGHT = 100


@dataclass(frozen=True, slots=True)
class Side:
    """The student's side or the teacher's: the same events, read for its own spec."""

    history: History
    task: Task

    @property
    def spec(self) -> FeatureSpec:
        """Return its spec."""
        return self.task.spec


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.trainer.distill.main", description="Train a small base with a teacher.")
    add_file_options(parser)
    parser.add_argument("--teacher", type=Path, required=True, help="feature spec of the teacher: the same tasks, kinds and negatives")
    parser.add_argument("--out", required=True, help="fsspec URL of the folder to write")
    parser.add_argument("--weight", type=float, default=1.0, help="of the loss towards the teacher's answers; that towards labels weighs 1")
    parser.add_argument("--held-out", type=float, default=0.1, help="the last part of the events, scored before it is learned")
    parser.add_argument("--scored-events", type=int, default=MAX_SCORED_EVENTS, help="of more held-out events, about so many are scored")
    parser.add_argument("--active-users", type=int, default=BatchConfig().active_users, help="sessions overlaid at once; 0: order of time")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    guard_output(os.environ)
    options = _parser().parse_args(argv)
    # One thread: the order of sums, and so every bit of the weights, must not depend on the machine.
    torch.set_num_threads(1)
    try:
        _check(options)
        check_free(options.out)
        work = WorkFolder.beside(options.out)
        try:
            _run(options, work)
        finally:
            work.close()
    except (ConfigurationError, ServiceError) as error:
        print(f"configuration error: {without_credentials(str(error))}", file=sys.stderr)
        return _EXIT_BAD_CONFIGURATION
    return 0


def _check(options: argparse.Namespace) -> None:
    if not 0 < options.weight <= _MAX_WEIGHT:
        raise ConfigurationError(f"--weight must be in (0, {_MAX_WEIGHT}]; without a teacher it is `make train`")
    if not 0 < options.held_out < 1 or options.scored_events < 1 or options.active_users < 0:
        raise ConfigurationError("--held-out must be in (0, 1), --scored-events at least 1, --active-users not negative")


def _run(options: argparse.Namespace, work: WorkFolder) -> None:
    of_student, of_teacher = FeatureSpec.load(options.spec), FeatureSpec.load(options.teacher)
    check_fits(of_student, of_teacher)
    load_settings(MlflowSettings)  # a wrong setting ends the run before it learns
    began_ms, began = wall_ms(), time.monotonic()
    student, teacher = _sides(options, of_student, of_teacher, work)
    seconds = {"reading": time.monotonic() - began}
    config = BatchConfig(active_users=options.active_users, seed=options.seed)
    print_lines(order_remarks(student.history.interactions, config))
    began = time.monotonic()
    taught = teach(student.task, teacher.task, config, options.weight)
    seconds["lessons"] = time.monotonic() - began
    costs = _costs(student, teacher, taught)
    began = time.monotonic()
    events = _scored(student, teacher, taught, config, options.scored_events)
    seconds["held-out part"] = time.monotonic() - began
    first_part, last_part = student.task.events, student.task.held_out
    shown = {name: getattr(options, name) for name in ("weight", "active_users", "seed", "held_out")}
    trained = Trained(taught.learners[STUDENT], taught.states, 1, 1, ())
    written = write_base(options.out, student.spec, student.history, trained, shown, len(student.history.interactions))
    tasks = compare(events, STUDENT)
    report = {
        "base": written,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "coverage": COVERAGE,
        "held_out": described(events, first_part, last_part),
        "tasks": tasks,
        "curves": curves(events, tasks, (STUDENT, ALONE, TEACHER)),
        "verdict": verdict(tasks, STUDENT, ALONE),
        "lessons": {"weight": options.weight, "items": min(NUM_ITEMS, len(student.task.item_ids))} | costs,
    }
    files = report_files(report, markdown(report), tasks, STUDENT)
    publish_report(options.out, report, files, lines(report))
    record(options.out, report, files, began_ms, STUDENT)


def _sides(options: argparse.Namespace, student: FeatureSpec, teacher: FeatureSpec, work: WorkFolder) -> tuple[Side, Side]:
    """Read the files for both specs: once, where both read the same of users, items and requests.

    Raises:
        ConfigurationError: the events cannot be read, or too few are held out.
    """

    def read(spec: FeatureSpec) -> History:
        history = read_history(options.data, spec, read_options(options), work=work, say=lambda line: print(line, flush=True))
        print_lines(remarks(history))
        return history

    of_student = read(student)
    if _read_by(student) == _read_by(teacher):
        of_teacher = of_student
    else:
        print("what the teacher reads besides:", flush=True)
        of_teacher = read(teacher)
    return _side(student, of_student, options.held_out), _side(teacher, of_teacher, options.held_out)


def _read_by(spec: FeatureSpec) -> tuple[object, ...]:
    """Return what decides how files are read for a spec; kinds and negatives are the same (`check_fits`)."""
    return frozenset(spec.plan.wanted), spec.reads_positions


def _side(spec: FeatureSpec, history: History, held_out: float) -> Side:
    first_part, last_part = parts_of(history, held_out)
    if not last_part:
        raise ConfigurationError("too few events are held out to say what a teacher is worth; give more events, or a larger --held-out")
    task = Task(
        spec=spec,
        events=first_part,
        categories=history.categories,
        item_ids=list(dict.fromkeys(one.item_id for one in first_part)),
        attributes=attributes_of(spec, history),
        held_out=last_part,
    )
    return Side(history, task)


def _costs(student: Side, teacher: Side, taught: Taught) -> dict[str, Any]:
    """Return by side what its network is, and what a score costs."""
    sides = {STUDENT: (student, taught.states), TEACHER: (teacher, taught.teacher_states)}
    timed = {
        name: requests(side.spec, taught.learners[name], states, side.task.held_out[:_TIMED_EVENTS], side.task.item_ids)
        for name, (side, states) in sides.items()
    }
    ms = costs_ms(timed)
    return {
        name: {
            "spec": side.spec.source,
            "network": side.spec.network.model_dump(mode="json"),
            "weights": sum(parameter.numel() for parameter in taught.learners[name].network.parameters()),
            "ms": round(ms[name], 3),
        }
        for name, (side, _) in sides.items()
    }


def _scored(student: Side, teacher: Side, taught: Taught, config: BatchConfig, max_scored: int) -> ScoredEvents:
    """Score and learn the held-out part by each; `taught.states` and the learners contain it afterwards."""
    by_name = {
        STUDENT: (student, taught.states),
        ALONE: (student, states_behind(student.task, config)),
        TEACHER: (teacher, taught.teacher_states),
    }
    return side_by_side(
        {
            name: scored(
                side.spec,
                taught.learners[name],
                states,
                side.task.events,
                side.task.held_out,
                list(side.history.categories),
                config,
                max_scored,
                with_others=name == STUDENT,
            )
            for name, (side, states) in by_name.items()
        }
    )


if __name__ == "__main__":
    sys.exit(main())
