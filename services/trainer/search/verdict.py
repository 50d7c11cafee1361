"""Whether the search gained anything: winner and start, both learned anew up to the last part, compared there event by event. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from services.trainer.held_out.report import ALL, COMPARED, RISING, compare
from services.trainer.held_out.scored import FROZEN, LIVE, ScoredEvents, TaskRows

WINNER, START = "winner", "start"
_CALLED = {LIVE: "", FROZEN: "_frozen"}


def side_by_side(winner: ScoredEvents, start: ScoredEvents) -> ScoredEvents:
    """Return the scores of both over the same rows: `winner`, `winner_frozen`, `start`, `start_frozen`, and the counters.

    Raises:
        ValueError: they are not of the same rows.
    """
    tasks = {}
    for task, of_start in start.tasks.items():
        of_winner = winner.tasks[task]
        is_same = np.array_equal(of_winner.event_N, of_start.event_N) and np.array_equal(of_winner.labels_N, of_start.labels_N)
        if not is_same or list(winner.users) != list(start.users):
            raise ValueError(f"task {task}: winner and start were scored on other rows")
        tasks[task] = TaskRows(
            event_N=of_start.event_N,
            labels_N=of_start.labels_N,
            scores=_named(of_winner.scores, of_start.scores),
            ndcg=None if of_start.ndcg is None or of_winner.ndcg is None else _named(of_winner.ndcg, of_start.ndcg),
        )
    return replace(start, tasks=tasks)


def _named(winner: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    named = {f"{who}{_CALLED[name]}": of[name] for who, of in ((WINNER, winner), (START, start)) for name in (LIVE, FROZEN)}
    return named | {name: scores for name, scores in start.items() if name not in _CALLED}


def compared(winner: ScoredEvents, start: ScoredEvents) -> dict[str, Any]:
    """Return the measures of both by task and slice with 95 % intervals by user, and the winner's gains over the others, paired."""
    return compare(side_by_side(winner, start), WINNER)


def verdict(tasks: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return by task and metric whether the winner is "better", "worse" or "no different": by whether the gain's interval holds 0.

    "not told": too few users for an interval, or no labels.
    """
    gains = {task: by_slice.get(ALL, {}).get(f"{WINNER}_minus", {}).get(START, {}) for task, by_slice in tasks.items()}
    return {task: {metric: _told(of.get(metric), metric) for metric in COMPARED} for task, of in gains.items()}


def _told(gain: Mapping[str, float | None] | None, metric: str) -> str:
    low, high = (None, None) if gain is None else (gain["low"], gain["high"])
    if low is None or high is None:
        return "not told"
    if low <= 0 <= high:
        return "no different"
    return "better" if (low > 0) == (metric in RISING) else "worse"
