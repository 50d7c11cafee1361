"""Compares the contestants on the scored events, by task and slice: numbers with 95 % intervals by user, as plain dictionaries. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from services.trainer.held_out.estimates import Estimate, auc, calibration, gauc, log_loss, mean, ndcg_of_users
from services.trainer.held_out.scored import LIVE, ScoredEvents, TaskRows

METRICS = ("auc", "gauc", "ndcg10", "log_loss", "calibration")
RISING = ("auc", "gauc", "ndcg10")
"""More is better."""
COMPARED = (*RISING, "log_loss")
"""Of these the live learner's difference to every other contestant is given."""
ALL = "all"
DIGITS = 6
"""Of what is told after the point."""


def slices(events: ScoredEvents) -> dict[str, npt.NDArray[np.bool_]]:
    """Return which events belong to each slice, without slices that hold none or the same as all."""
    found = {
        "known_users": events.knows_user_E,
        "new_users": ~events.knows_user_E,
        "known_items": events.knows_item_E,
        "new_items": ~events.knows_item_E,
    }
    found |= {f"kind_{kind}": events.kind_E == kind for kind in sorted(set(events.kind_E.tolist()))}
    return {ALL: np.ones(len(events), np.bool_)} | {name: in_E for name, in_E in found.items() if in_E.any() and not in_E.all()}


def compare(events: ScoredEvents, subject: str = LIVE) -> dict[str, dict[str, Any]]:
    """Return by task and slice what `_compare` finds; slices without a label of the task are absent.

    Args:
        events: what was scored.
        subject: of the contestants the one whose gains over the others are given.
    """
    return {
        task: {name: found for name, in_E in slices(events).items() if (found := _compare(events, rows, in_E, subject)) is not None}
        for task, rows in events.tasks.items()
    }


def _compare(events: ScoredEvents, rows: TaskRows, in_E: npt.NDArray[np.bool_], subject: str) -> dict[str, Any] | None:
    """Return counts, every contestant's measures, and the gains of the subject over the others."""
    in_N = in_E[rows.event_N]
    if not in_N.any():
        return None
    labels_N, user_N = rows.labels_N[in_N], events.user_E[rows.event_N[in_N]]
    estimates = {
        name: dict(_estimates(events, rows, name, labels_N, scores_N[in_N], user_N, in_E)) for name, scores_N in rows.scores.items()
    }
    gains = {
        name: {metric: stated(estimates[subject][metric].minus(own[metric])) for metric in COMPARED}
        for name, own in estimates.items()
        if name != subject
    }
    return {
        "events": int(in_E.sum()),
        "users": len(np.unique(user_N)),
        "labels": int(in_N.sum()),
        "positives": int(labels_N.sum()),
        "contestants": {name: {metric: stated(one) for metric, one in own.items()} for name, own in estimates.items()},
        f"{subject}_minus": gains,
    }


def _estimates(
    events: ScoredEvents,
    rows: TaskRows,
    name: str,
    labels_N: npt.NDArray[np.float64],
    scores_N: npt.NDArray[np.float64],
    user_N: npt.NDArray[np.int64],
    in_E: npt.NDArray[np.bool_],
) -> Iterator[tuple[str, Estimate]]:
    num_users = len(events.users)
    yield "auc", auc(labels_N, scores_N, user_N, num_users)
    yield "gauc", gauc(labels_N, scores_N, user_N, num_users)
    if rows.ndcg is None:
        yield "ndcg10", ndcg_of_users(labels_N, scores_N, user_N, num_users)
    else:
        of_lists_E = rows.ndcg[name]
        counts_E = in_E & np.isfinite(of_lists_E)
        yield "ndcg10", mean(of_lists_E[counts_E], events.user_E[counts_E], num_users).within(0.0, 1.0)
    yield "log_loss", log_loss(labels_N, scores_N, user_N, num_users)
    yield "calibration", calibration(labels_N, scores_N, user_N, num_users)


def stated(estimate: Estimate) -> dict[str, float | None]:
    """Return a measure for JSON, which has no NaN: null is what cannot be told."""
    interval = estimate.interval()
    low, high = (None, None) if interval is None else (round(interval.low, DIGITS), round(interval.high, DIGITS))
    return {"value": round(estimate.value, DIGITS) if np.isfinite(estimate.value) else None, "low": low, "high": high}


def best_baseline(contestants: Mapping[str, Mapping[str, Mapping[str, float | None]]], metric: str, among: Mapping[str, Any]) -> str | None:
    """Return the baseline that does best by a measure, so that nobody picks a weak one; None when none has a value."""
    values = {name: contestants[name][metric]["value"] for name in contestants if name in among}
    told = {name: value for name, value in values.items() if value is not None}
    if not told:
        return None
    return (max if metric in RISING else min)(told, key=told.__getitem__)
