"""Measures of scores, each with the influence of every user on it, and from that a 95 % interval. Pure; numpy only.

Rows of one user are not independent, so all spread is taken over users. The influence of a user is by how much the measure moves per
weight given to the user (the infinitesimal jackknife: what a bootstrap by user estimates by drawing, without drawing); the interval is
Student's, with as many degrees of freedom as there are users of equal size, less one. Differences of two measures over the same rows are
paired, since each user's influences are subtracted. `tests/interval_coverage.py` simulates how often such an interval holds the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MIN_USERS = 5
"""An interval is not given from fewer users."""
MIN_EFFECTIVE_USERS = 3.0
"""Nor where a few users have so many of the rows that there are fewer users of equal size."""
DEPTH = 10
"""NDCG looks at so many ranks."""
_SMALLEST_PROBABILITY = 1e-7
_Z_975 = 1.959963984540054


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measure over rows of users.

    Attributes:
        value: NaN when it cannot be told, such as an AUC without positives.
        influence_U: float64 [users], sums to 0; of the logarithm of the value when `is_ratio`.
        weight_U: float64 [users], how much of the rows is each user's; 0 of users without any.
        is_ratio: whether the interval is symmetric on the logarithm's scale.
        least, most: what the measure cannot be beyond.
    """

    value: float
    influence_U: FloatArray
    weight_U: FloatArray
    is_ratio: bool = False
    least: float = -np.inf
    most: float = np.inf

    def minus(self, other: Estimate) -> Estimate:
        """Return the difference to another measure of the same rows, paired by user."""
        return Estimate(self.value - other.value, self.influence_U - other.influence_U, self.weight_U)

    def interval(self) -> Interval | None:
        """Return the 95 % interval; None where it would say nothing: too few users, or no value."""
        num_users = int((self.weight_U > 0).sum())
        if num_users < MIN_USERS or not np.isfinite(self.value) or effective_users(self.weight_U) < MIN_EFFECTIVE_USERS:
            return None
        error = float(np.sqrt(num_users / (num_users - 1) * np.square(self.influence_U).sum()))
        half = student_975(effective_users(self.weight_U) - 1.0) * error
        if self.is_ratio:
            return Interval(self.value * float(np.exp(-half)), self.value * float(np.exp(half)))
        return Interval(max(self.value - half, self.least), min(self.value + half, self.most))

    def within(self, least: float, most: float) -> Estimate:
        """Return it with the ends of what it can be."""
        return replace(self, least=least, most=most)


def effective_users(weight_U: FloatArray) -> float:
    """Return how many users of equal size would weigh as these do (Kish 1965); 0 without any weight."""
    squares = float(np.square(weight_U).sum())
    return float(weight_U.sum()) ** 2 / squares if squares else 0.0


def student_975(degrees: float) -> float:
    """Return the 97.5 % quantile of Student's t, degrees >= 2, within 1 % (Hill 1970, the expansion in 1 / degrees)."""
    z = _Z_975
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))


def _by_user(values_N: FloatArray, user_N: IntArray, num_users: int) -> FloatArray:
    return np.bincount(user_N, values_N, minlength=num_users).astype(np.float64)


def ratio(above_U: FloatArray, below_U: FloatArray) -> Estimate:
    """Return sum(above) / sum(below), a mean when `below_U` counts; NaN when there is nothing below."""
    total = float(below_U.sum())
    if total <= 0:
        return Estimate(float("nan"), np.zeros(len(above_U)), below_U)
    value = float(above_U.sum()) / total
    return Estimate(value, (above_U - value * below_U) / total, below_U)


def mean(values_N: FloatArray, user_N: IntArray, num_users: int) -> Estimate:
    """Return the mean over rows."""
    return ratio(_by_user(values_N, user_N, num_users), np.bincount(user_N, minlength=num_users).astype(np.float64))


def log_loss(labels_N: FloatArray, probabilities_N: FloatArray, user_N: IntArray, num_users: int) -> Estimate:
    """Return the mean log-loss, natural logarithm; probabilities of 0 and 1 count as 1e-7 away from there."""
    clipped_N = np.clip(probabilities_N, _SMALLEST_PROBABILITY, 1.0 - _SMALLEST_PROBABILITY)
    return mean(-(labels_N * np.log(clipped_N) + (1.0 - labels_N) * np.log1p(-clipped_N)), user_N, num_users).within(0.0, np.inf)


def calibration(labels_N: FloatArray, probabilities_N: FloatArray, user_N: IntArray, num_users: int) -> Estimate:
    """Return the sum of predictions over the number of positives: 1 is right; NaN without positives."""
    said_U, were_U = (_by_user(values_N, user_N, num_users) for values_N in (probabilities_N, labels_N))
    count_U = np.bincount(user_N, minlength=num_users).astype(np.float64)
    said, were = float(said_U.sum()), float(were_U.sum())
    if were <= 0 or said <= 0:
        return Estimate(float("nan"), np.zeros(num_users), count_U, is_ratio=True)
    return Estimate(said / were, said_U / said - were_U / were, count_U, is_ratio=True)


def auc(labels_N: FloatArray, scores_N: FloatArray, user_N: IntArray, num_users: int) -> Estimate:
    """Return the area under the ROC curve over all rows, ties counted half; NaN while a class is missing.

    Source of the influence: Obuchowski 1997 (clustered ROC data), after DeLong 1988.
    """
    weight_U = np.bincount(user_N, minlength=num_users).astype(np.float64)
    positives = float(labels_N.sum())
    negatives = len(labels_N) - positives
    if positives == 0 or negatives == 0:
        return Estimate(float("nan"), np.zeros(num_users), weight_U)
    _, tie_N = np.unique(scores_N, return_inverse=True)
    of_positives, of_negatives = (np.bincount(tie_N, weights_N) for weights_N in (labels_N, 1.0 - labels_N))
    # Of each tie: the share of negatives below it, and of positives above it, its own counted half.
    below = (np.cumsum(of_negatives) - 0.5 * of_negatives) / negatives
    above = 1.0 - (np.cumsum(of_positives) - 0.5 * of_positives) / positives
    value = float((of_positives * below).sum() / positives)
    component_N = np.where(labels_N > 0, (below[tie_N] - value) / positives, (above[tie_N] - value) / negatives)
    return Estimate(value, _by_user(component_N, user_N, num_users), weight_U, least=0.0, most=1.0)


def gauc(labels_N: FloatArray, scores_N: FloatArray, user_N: IntArray, num_users: int) -> Estimate:
    """Return the mean of the users' own AUCs, weighted by rows (Zhu 2017, DIN, section 5.2); users with one class do not count."""
    order_N = np.lexsort((scores_N, user_N))
    users_N, sorted_N, labels_N = user_N[order_N], scores_N[order_N], labels_N[order_N]
    rank_N = _mean_ranks(users_N, sorted_N)
    count_U = np.bincount(users_N, minlength=num_users).astype(np.float64)
    positive_U = _by_user(labels_N, users_N, num_users)
    pairs_U = positive_U * (count_U - positive_U)
    mixed_U = pairs_U > 0
    wins_U = _by_user(rank_N * labels_N, users_N, num_users) - positive_U * (positive_U + 1.0) / 2.0
    auc_U = np.divide(wins_U, pairs_U, out=np.zeros(num_users), where=mixed_U)
    weight_U = np.where(mixed_U, count_U, 0.0)
    return ratio(auc_U * weight_U, weight_U).within(0.0, 1.0)


def _starts(users_N: IntArray) -> IntArray:
    """Return for each row, ordered by user, where its user begins."""
    begins_N = np.concatenate([[True], users_N[1:] != users_N[:-1]]) if len(users_N) else np.zeros(0, np.bool_)
    return np.maximum.accumulate(np.where(begins_N, np.arange(len(users_N)), 0))


def _ties(users_N: IntArray, sorted_N: FloatArray) -> IntArray:
    """Return the number of each row's tie: rows of one user and score. Rows are ordered by user and score."""
    if not len(users_N):
        return np.zeros(0, np.int64)
    changes_N = (users_N[1:] != users_N[:-1]) | (sorted_N[1:] != sorted_N[:-1])
    return np.concatenate([[0], np.cumsum(changes_N)]).astype(np.int64)


def _mean_ranks(users_N: IntArray, sorted_N: FloatArray) -> FloatArray:
    """Return each row's rank within its user from 1, tied rows their mean."""
    rank_N = (np.arange(len(users_N)) - _starts(users_N) + 1).astype(np.float64)
    tie_N = _ties(users_N, sorted_N)
    return np.asarray((np.bincount(tie_N, rank_N) / np.bincount(tie_N))[tie_N]) if len(tie_N) else rank_N


_DISCOUNTS = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(1, DEPTH + 1) + 1.0))])


def _discount_up_to(ranks: npt.NDArray[Any]) -> FloatArray:
    """Return the sum of discounts of the ranks 1 to `ranks`, of which those beyond DEPTH are 0."""
    return np.asarray(_DISCOUNTS[np.minimum(ranks, DEPTH)])


def ndcg_of_chosen(scores_N: npt.NDArray[Any], chosen: int) -> float:
    """Return NDCG@10 of a list of which one item is relevant; tied items stand in every order (McSherry and Najork 2008)."""
    above = int((scores_N > scores_N[chosen]).sum())
    tied = int((scores_N == scores_N[chosen]).sum())
    first, last = _discount_up_to(np.asarray([above, above + tied]))
    return float(last - first) / tied


def ndcg_of_users(labels_N: FloatArray, scores_N: FloatArray, user_N: IntArray, num_users: int) -> Estimate:
    """Return the mean over users of NDCG@10 of each user's rows as one list; users with one class do not count."""
    order_N = np.lexsort((-scores_N, user_N))
    users_N, sorted_N, labels_N = user_N[order_N], scores_N[order_N], labels_N[order_N]
    rank_N = np.arange(len(users_N)) - _starts(users_N) + 1
    tie_N = _ties(users_N, sorted_N)
    discount_N = _discount_up_to(rank_N) - _discount_up_to(rank_N - 1)
    if len(tie_N):
        discount_N = (np.bincount(tie_N, discount_N) / np.bincount(tie_N))[tie_N]
    gained_U = _by_user(labels_N * discount_N, users_N, num_users)
    count_U = np.bincount(users_N, minlength=num_users)
    positive_U = _by_user(labels_N, users_N, num_users)
    mixed_U = (positive_U > 0) & (positive_U < count_U)
    best_U = _discount_up_to(positive_U.astype(np.int64))
    own_U = np.divide(gained_U, best_U, out=np.zeros(num_users), where=mixed_U)
    return ratio(own_U * mixed_U, mixed_U.astype(np.float64)).within(0.0, 1.0)
