"""Teaches a student in one replay: the teacher answers before it learns a step's samples, and the student learns labels and answers.

So an answer contains nothing of the label beside it. A teacher that had learned these events before would know their labels by heart, and
pass them on as if they were knowledge. The same student without a teacher learns beside both, or nobody could tell what teaching was worth.

The specs may differ in all but what is learned: the teacher may have another network, larger rows, more history, and features that the
service cannot have in time (privileged features, Xu et al. 2020). Each side's features are therefore computed under its own spec.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tunemesh.samples.v1.sample_pb2 import SampleGroup

from services.common.platform.errors import ConfigurationError
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.networks.output_bias import begin_at
from services.trainer.batch import FeatureStates, replay
from services.trainer.group_columns import columns_of
from services.trainer.label_odds import log_odds
from services.trainer.learner import Learner, LearnerConfig
from services.trainer.passes import Task
from services.trainer.progress import Progress
from services.trainer.replay_order import BatchConfig, replay_order
from services.trainer.targets import Lesson

STUDENT, ALONE, TEACHER = "student", "alone", "teacher"


@dataclass(frozen=True, slots=True)
class Taught:
    """What came of it, all having learned the same events once.

    Attributes:
        learners: `student`, `alone` (the same without a teacher) and `teacher`.
        states: the student's feature states behind the last event.
        teacher_states: the teacher's.
    """

    learners: dict[str, Learner]
    states: FeatureStates
    teacher_states: FeatureStates


def check_fits(student: FeatureSpec, teacher: FeatureSpec) -> None:
    """Raise unless both learn the same of the same samples.

    Raises:
        ConfigurationError: they do not; names what differs.
    """
    ours, theirs = _learned(student), _learned(teacher)
    different = [f"{key} is {_short(theirs[key])}, the student's {_short(ours[key])}" for key in ours if ours[key] != theirs[key]]
    if different:
        raise ConfigurationError(
            f"the teacher's spec cannot teach this student: {'; '.join(different)}: give both the same tasks, kinds and negatives; "
            "network, features, dims, history and learning may differ"
        )


def _learned(spec: FeatureSpec) -> dict[str, Any]:
    """Return what decides which samples an event makes and what their labels are."""
    return {
        "tasks": [task.model_dump(mode="json") for task in spec.tasks],
        "kinds": {name: kind.model_dump(mode="json") for name, kind in spec.kinds.items()},
        "negatives": spec.negatives.model_dump(mode="json"),
    }


def _short(value: object) -> str:
    return json.dumps(value, sort_keys=True)[:200]


def teach(
    student: Task,
    teacher: Task,
    config: BatchConfig,
    weight: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = lambda line: print(line, flush=True),
) -> Taught:
    """Learn all events once.

    Args:
        student, teacher: the same events, each under its own spec and with what that reads; see `check_fits`.
        config: how the events are replayed.
        weight: of the student's loss towards the teacher's answers, where that towards the labels weighs 1; 0 teaches nothing.
        clock: in seconds, for the progress.
        say: is told how far it is.
    """
    learners = {name: _begun(task, config.seed) for name, task in ((STUDENT, student), (ALONE, student), (TEACHER, teacher))}
    states, teacher_states = (FeatureStates(task.spec, task.categories, task.attributes) for task in (student, teacher))
    progress = Progress("lessons", len(student.events), clock=clock, say=say)
    pairs = zip(_groups(student, states, config), _groups(teacher, teacher_states, config), strict=True)
    for num_events, step in _steps(pairs, config.events_per_step):
        if step:
            learn(learners, student.spec, step, weight)
        progress.at(num_events)
    return Taught(learners, states, teacher_states)


def learn(learners: dict[str, Learner], spec: FeatureSpec, step: Sequence[tuple[SampleGroup, SampleGroup]], weight: float) -> None:
    """Learn one step; of each pair the first is the student's group, the second the teacher's, of the same samples."""
    said_BT = learners[TEACHER].step([theirs for _, theirs in step]).scores_BT
    columns = [columns_of(spec, ours) for ours, _ in step]
    learners[ALONE].learn(columns)
    learners[STUDENT].learn(columns, Lesson(said_BT, np.float32(weight)))


def _begun(task: Task, seed: int) -> Learner:
    learner = Learner(task.spec, LearnerConfig.of(task.spec, seed=seed))
    begin_at(learner.network, task.spec, log_odds(task.spec, task.events, len(task.item_ids)))
    return learner


def _groups(task: Task, states: FeatureStates, config: BatchConfig) -> Iterator[SampleGroup]:
    return replay(task.spec, replay_order(task.events, config), list(task.item_ids), states, config, 0)


def _steps(pairs: Iterator[tuple[SampleGroup, SampleGroup]], size: int) -> Iterator[tuple[int, list[tuple[SampleGroup, SampleGroup]]]]:
    """Yield steps of so many events, and how many events there were up to them; impressions that are not kept are in none."""
    step, num_events = [], 0
    for num_events, pair in enumerate(pairs, 1):
        if pair[0].samples:
            step.append(pair)
        if num_events % size == 0:
            yield num_events, step
            step = []
    if step:
        yield num_events, step
