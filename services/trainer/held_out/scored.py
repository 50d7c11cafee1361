"""What was said of held-out events, by every contestant, and what came of them: the columns that the report is made from. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.labels import labels_of_row
from services.common.ranker.spec_parts import TaskSpec
from services.common.ranker.states import Interaction
from services.trainer.held_out.counters import names_of
from services.trainer.held_out.estimates import ndcg_of_chosen

Float32Array = npt.NDArray[np.float32]

LIVE, FROZEN = "live", "frozen"
"""Learns the held-out events after it has scored them; stays what it was before the first of them, with the same features."""


def contestants(spec: FeatureSpec, task: TaskSpec) -> tuple[str, ...]:
    """Return who is compared on a task."""
    return (LIVE, FROZEN, *names_of(spec, task))


def live_alone(_spec: FeatureSpec, _task: TaskSpec) -> tuple[str, ...]:
    """Return the live learner alone: others do not score."""
    return (LIVE,)


@dataclass(frozen=True, slots=True)
class TaskRows:
    """The labelled items of one task.

    Attributes:
        event_N: int64, the event of each row.
        labels_N: float64, 0 or 1.
        scores: by contestant float64 [N], probabilities.
        ndcg: by contestant float64 [events], of the chosen item among those shown with it, NaN where it has no positive label; None for a
            task whose negatives are not drawn.
    """

    event_N: npt.NDArray[np.int64]
    labels_N: npt.NDArray[np.float64]
    scores: Mapping[str, npt.NDArray[np.float64]]
    ndcg: Mapping[str, npt.NDArray[np.float64]] | None


@dataclass(frozen=True, slots=True)
class ScoredEvents:
    """All that was scored.

    Attributes:
        users: distinct users, in the order in which they were met.
        user_E: int64, the place of each event's user there.
        knows_user_E, knows_item_E: whether the user, and the chosen item, have an event in the first part.
        kind_E: the kind of each event.
        tasks: by name.
    """

    users: Sequence[str]
    user_E: npt.NDArray[np.int64]
    knows_user_E: npt.NDArray[np.bool_]
    knows_item_E: npt.NDArray[np.bool_]
    kind_E: npt.NDArray[Any]
    tasks: Mapping[str, TaskRows]

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.user_E)


class _TaskCollector:
    """The rows of one task so far; float32, since there may be millions."""

    def __init__(self, spec: FeatureSpec, task: TaskSpec, column: int, names: Sequence[str]) -> None:
        self._draws, self._column, self._names = spec.draws_negatives(task), column, names
        self._events: list[int] = []
        self._labels: list[npt.NDArray[np.float32]] = []
        self._scores: list[Float32Array] = []
        self._ndcg: list[list[float]] = []

    def add(self, event: int, label: float | None, scores: Mapping[str, Float32Array]) -> None:
        """Take the scores of one event's items, float32 [items, tasks] by contestant, the chosen item first."""
        all_CN = np.stack([scores[name][:, self._column] for name in self._names])
        if self._draws:
            is_chosen = label is not None and label > 0
            self._ndcg.append([ndcg_of_chosen(row_N, 0) if is_chosen else float("nan") for row_N in all_CN])
        first = 0 if label is not None else 1
        last = all_CN.shape[1] if self._draws else 1
        if last <= first:
            return
        labels_N = np.zeros(last - first, np.float32)
        if label is not None:
            labels_N[0] = label
        self._events += [event] * (last - first)
        self._labels.append(labels_N)
        self._scores.append(all_CN[:, first:last])

    def rows(self) -> TaskRows:
        scores_CN = np.concatenate(self._scores, axis=1) if self._scores else np.zeros((len(self._names), 0), np.float32)
        labels_N = np.concatenate(self._labels) if self._labels else np.zeros(0, np.float32)
        ndcg_EC = np.asarray(self._ndcg, np.float64).reshape(-1, len(self._names))
        return TaskRows(
            event_N=np.asarray(self._events, np.int64),
            labels_N=labels_N.astype(np.float64),
            scores={name: scores_N.astype(np.float64) for name, scores_N in zip(self._names, scores_CN, strict=True)},
            ndcg=dict(zip(self._names, ndcg_EC.T, strict=True)) if self._draws else None,
        )


class Collector:
    """Takes scored events one by one."""

    def __init__(
        self,
        spec: FeatureSpec,
        known_users: set[str],
        known_items: set[str],
        names: Callable[[FeatureSpec, TaskSpec], Sequence[str]] = contestants,
    ) -> None:
        """`known_*`: who and what has an event in the first part. names: who is compared on a task."""
        self._spec = spec
        self._known_users, self._known_items = known_users, known_items
        self._users: dict[str, int] = {}
        self._events: list[tuple[int, bool, bool, str]] = []
        self._tasks = {task.name: _TaskCollector(spec, task, column, names(spec, task)) for column, task in enumerate(spec.tasks)}

    def add(self, interaction: Interaction, scores: Mapping[str, Float32Array]) -> None:
        """Take one event. scores: by contestant float32 [items, tasks], of the items that it showed, the chosen one first."""
        user_id, item_id = interaction.user_id, interaction.item_id
        labels = {label.task: label.value for label in labels_of_row(self._spec, interaction.kind, interaction.value)}
        for name, task in self._tasks.items():
            task.add(len(self._events), labels.get(name), scores)
        user = self._users.setdefault(user_id, len(self._users))
        self._events.append((user, user_id in self._known_users, item_id in self._known_items, interaction.kind))

    def scored(self) -> ScoredEvents:
        """Return all events so far as columns."""
        user_E, knows_user_E, knows_item_E, kind_E = zip(*self._events, strict=True) if self._events else ((), (), (), ())
        return ScoredEvents(
            users=list(self._users),
            user_E=np.asarray(user_E, np.int64),
            knows_user_E=np.asarray(knows_user_E, np.bool_),
            knows_item_E=np.asarray(knows_item_E, np.bool_),
            kind_E=np.asarray(kind_E, dtype=object),
            tasks={name: task.rows() for name, task in self._tasks.items()},
        )
