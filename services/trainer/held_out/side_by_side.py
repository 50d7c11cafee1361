"""Several trainings measured on the same held-out events, beside each other: their scores over one set of rows, and who is better. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from services.trainer.held_out.report import ALL, COMPARED, RISING
from services.trainer.held_out.scored import FROZEN, LIVE, ScoredEvents, TaskRows

_CALLED = {LIVE: "", FROZEN: "_frozen"}


def side_by_side(trainings: Mapping[str, ScoredEvents]) -> ScoredEvents:
    """Return the scores of all over the same rows: `NAME`, and `NAME_frozen` where that was scored, and the counters of whoever has them.

    Raises:
        ValueError: they are not of the same rows.
    """
    first = next(iter(trainings.values()))
    tasks = {}
    for task, of_first in first.tasks.items():
        rows = {name: of.tasks[task] for name, of in trainings.items()}
        for name, own in rows.items():
            is_same = np.array_equal(own.event_N, of_first.event_N) and np.array_equal(own.labels_N, of_first.labels_N)
            if not is_same or list(trainings[name].users) != list(first.users):
                raise ValueError(f"task {task}: {', '.join(trainings)} were not scored on the same rows")
        ndcg = {name: own.ndcg for name, own in rows.items() if own.ndcg is not None}
        tasks[task] = TaskRows(
            event_N=of_first.event_N,
            labels_N=of_first.labels_N,
            scores=_named({name: own.scores for name, own in rows.items()}),
            ndcg=_named(ndcg) if len(ndcg) == len(rows) else None,
        )
    return replace(first, tasks=tasks)


def _named(by_training: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    learners = {
        f"{training}{_CALLED[name]}": found for training, of in by_training.items() for name, found in of.items() if name in _CALLED
    }
    counters = {name: found for of in by_training.values() for name, found in of.items() if name not in _CALLED}
    return learners | counters


def verdict(tasks: Mapping[str, Any], subject: str, other: str) -> dict[str, dict[str, str]]:
    """Return by task and metric whether the subject is "better", "worse" or "no different": by whether the gain's interval holds 0.

    "not told": too few users for an interval, or no labels.

    Args:
        tasks: what `report.compare` says with this subject.
        subject: whose gains are told.
        other: over whom.
    """
    gains = {task: by_slice.get(ALL, {}).get(f"{subject}_minus", {}).get(other, {}) for task, by_slice in tasks.items()}
    return {task: {metric: _told(of.get(metric), metric) for metric in COMPARED} for task, of in gains.items()}


def _told(gain: Mapping[str, float | None] | None, metric: str) -> str:
    low, high = (None, None) if gain is None else (gain["low"], gain["high"])
    if low is None or high is None:
        return "not told"
    if low <= 0 <= high:
        return "no different"
    return "better" if (low > 0) == (metric in RISING) else "worse"
