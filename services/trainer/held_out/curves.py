"""How good each contestant was as the held-out part went on, and what came of its probabilities: numbers to draw. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from services.trainer.held_out.counters import NAMES as BASELINES
from services.trainer.held_out.estimates import log_loss, mean
from services.trainer.held_out.report import ALL, DIGITS, best_baseline, stated
from services.trainer.held_out.scored import ScoredEvents, TaskRows

NUM_PORTIONS = 10
"""Into so many equal parts the scored events are divided, in the order in which they were learned."""
NUM_BINS = 10
"""Into so many bins the probabilities of a contestant are put."""
LOG_LOSS, CALIBRATION = "log_loss", "calibration"


def curves(events: ScoredEvents, tasks: Mapping[str, Any], shown: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return by task, of those that have labels, what is drawn of each contestant.

    Args:
        events: what was scored.
        tasks: what `report.compare` says of it.
        shown: contestants; the counter that does best by log-loss comes on top.
    Returns:
        "log_loss": by contestant NUM_PORTIONS values, None where a portion has no labels; "calibration": by contestant its bins, from
        small probabilities to large ones: how many "labels", the mean that it "said", and the rate that was "seen", with its interval.
    """
    found = {}
    for task, by_slice in tasks.items():
        if ALL in by_slice:
            best = best_baseline(by_slice[ALL]["contestants"], LOG_LOSS, dict.fromkeys(BASELINES))
            names, rows = [*shown, *([best] if best else [])], events.tasks[task]
            found[task] = {
                LOG_LOSS: {name: [stated(loss)["value"] for loss in _of_portions(events, rows, name)] for name in names},
                CALIBRATION: {name: list(_bins(events, rows, name)) for name in names},
            }
    return found


def _of_portions(events: ScoredEvents, rows: TaskRows, name: str) -> Iterator[Any]:
    """Yield the mean log-loss of each portion."""
    portion_N = rows.event_N * NUM_PORTIONS // len(events)
    for portion in range(NUM_PORTIONS):
        in_N = portion_N == portion
        yield log_loss(rows.labels_N[in_N], rows.scores[name][in_N], events.user_E[rows.event_N[in_N]], len(events.users))


def _bins(events: ScoredEvents, rows: TaskRows, name: str) -> Iterator[dict[str, Any]]:
    """Yield the bins that are not empty."""
    scores_N = rows.scores[name]
    bin_N = bins_of(scores_N)
    for number in range(NUM_BINS):
        in_N = bin_N == number
        if in_N.any():
            seen = mean(rows.labels_N[in_N], events.user_E[rows.event_N[in_N]], len(events.users)).within(0.0, 1.0)
            yield {"labels": int(in_N.sum()), "said": round(float(scores_N[in_N].mean()), DIGITS), "seen": stated(seen)}


def bins_of(scores_N: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the bin of each row: bins hold equal sums of probabilities, so that each expects as many positives.

    With equal numbers of rows nine bins of ten would hold what hardly anybody chooses, where negatives are drawn. Equal scores share a bin.

    Args:
        scores_N: float64 [rows], probabilities.
    """
    values_V, of_N, counts_V = np.unique(scores_N, return_inverse=True, return_counts=True)
    expected_V = values_V * counts_V
    middle_V = np.cumsum(expected_V) - expected_V / 2.0
    total = float(expected_V.sum())
    bin_V = np.minimum(middle_V * NUM_BINS / total, NUM_BINS - 1) if total > 0 else np.zeros(len(values_V))
    return np.asarray(bin_V.astype(np.int64)[of_N])
