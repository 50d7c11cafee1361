"""Shares of right answers and their paired differences, with intervals for people to read. Pure.

The gate decides by e-values (evidence.py); what it measured is shown with the percentile bootstrap (Efron and Tibshirani 1993, chapter
13): the same questions are drawn for both models, since most of the variance is the question's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from services.common.language.adapter_manifest import Metric

_RESAMPLES = 2_000
_SEED = 20_061

Role = Literal["base", "live", "candidate"]
"""Whose answers they are."""
Values = Sequence[float] | npt.NDArray[np.float64]


def share(values: Values) -> Metric:
    """Return the mean, such as the share of right answers; NaN over no question."""
    return _bootstrapped(np.asarray(values, dtype=np.float64))


def difference(left: Values, right: Values) -> Metric:
    """Return the mean of left - right over the same questions; its bounds resample questions, so the pairs stay together."""
    return _bootstrapped(np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64))


def measurements(name: str, right: Mapping[Role, Sequence[float]]) -> dict[str, Metric]:
    """Return a slice's share of right answers of each model, and the paired differences over what both were asked.

    Args:
        name: of the slice.
        right: by "base", "candidate" and, when an adapter is live, "live"; without it the base is what answers now.
    """
    answers: dict[Role, Sequence[float]] = {"live": right["base"], **right}
    metrics = {f"{name}.{role}": share(values) for role, values in answers.items()}
    candidate = answers["candidate"]
    against: tuple[Role, ...] = ("live", "base")
    for role in against:
        num = min(len(candidate), len(answers[role]))
        metrics[f"{name}.candidate_minus_{role}"] = difference(candidate[:num], answers[role][:num])
    return metrics


def _bootstrapped(values_N: npt.NDArray[np.float64]) -> Metric:
    num = len(values_N)
    if num == 0:
        return Metric(value=math.nan, low=math.nan, high=math.nan, num_samples=0)
    # Where values are few, how often each is drawn says all.
    values_V, counts_V = np.unique(values_N, return_counts=True)
    drawn_RV = np.random.default_rng(_SEED).multinomial(num, counts_V / num, size=_RESAMPLES)
    low, high = np.quantile(drawn_RV @ values_V / num, [0.025, 0.975])
    return Metric(value=float(values_N.mean()), low=float(low), high=float(high), num_samples=num)
