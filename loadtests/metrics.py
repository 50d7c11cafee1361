"""Metrics of the replay: AUC, NDCG@10, paired bootstrap by user, and the online counters that a learner must beat. numpy only; no I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

MEAN_PRIOR = 5.0


@dataclass(frozen=True, slots=True)
class Gain:
    """A difference of two metrics with its 95 % interval."""

    mean: float
    low: float
    high: float


class SortedScores:
    """Scores of labelled events, sorted once, so that the AUC under many weightings costs no sort."""

    def __init__(self, labels: FloatArray, scores: FloatArray) -> None:
        """Both are [events]; labels are 0 or 1."""
        self._order = np.argsort(scores, kind="stable")
        self._labels = labels[self._order]
        ordered = scores[self._order]
        self._tie = np.concatenate([[0], np.cumsum(ordered[1:] != ordered[:-1])])

    def auc(self, weights: FloatArray) -> float:
        """Return the area under the ROC curve, ties counted half; NaN when a class is absent. weights: repetitions of each event."""
        weight = weights[self._order]
        positive = self._labels * weight
        negative = weight - positive
        total = positive.sum() * negative.sum()
        if total == 0:
            return float("nan")
        positives = np.bincount(self._tie, positive)
        negatives = np.bincount(self._tie, negative)
        below = np.cumsum(negatives) - negatives
        return float((positives * (below + 0.5 * negatives)).sum() / total)


def auc(labels: FloatArray, scores: FloatArray, weights: FloatArray | None = None) -> float:
    """Return the area under the ROC curve, ties counted half; NaN when a class is absent.

    Args:
        weights: whole numbers >= 0, repetitions of each event (bootstrap); None means once each.
    """
    return SortedScores(labels, scores).auc(np.ones(len(labels)) if weights is None else weights)


def ndcg_of_target(scores: FloatArray, target: int, k: int = 10) -> float:
    """Return NDCG@k of a list with one relevant item: 1 / log2(1 + rank), 0 beyond k; of tied items half rank above the target."""
    above = float((scores > scores[target]).sum()) + 0.5 * float((scores == scores[target]).sum() - 1)
    return 1.0 / np.log2(above + 2.0) if above < k else 0.0


def _bootstrap_weights(users: Sequence[str], rounds: int, seed: int) -> Iterator[FloatArray]:
    """Yield `rounds` times float64 [events]: how often each event's user was drawn."""
    _, user_of_event = np.unique(np.asarray(users), return_inverse=True)
    num_users = int(user_of_event.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(num_users, np.full(num_users, 1.0 / num_users), size=rounds).astype(np.float64)
    return (counts[user_of_event] for counts in drawn)


def paired_gain(metric: Callable[[FloatArray], tuple[float, float]], users: Sequence[str], *, rounds: int = 1000, seed: int = 0) -> Gain:
    """Bootstrap by user: `metric` takes event weights and returns (better, worse) on that resample; both sides see the same users."""
    ours, theirs = metric(np.ones(len(users)))
    differences = [a - b for a, b in map(metric, _bootstrap_weights(users, rounds, seed))]
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    return Gain(ours - theirs, float(low), float(high))


def auc_gain(labels: FloatArray, ours: FloatArray, theirs: FloatArray, users: Sequence[str], *, rounds: int = 1000, seed: int = 0) -> Gain:
    """Return the gain in AUC of `ours` over `theirs`, paired by user."""
    better, worse = SortedScores(labels, ours), SortedScores(labels, theirs)
    return paired_gain(lambda weights: (better.auc(weights), worse.auc(weights)), users, rounds=rounds, seed=seed)


def mean_gain(ours: FloatArray, theirs: FloatArray, users: Sequence[str], *, rounds: int = 1000, seed: int = 0) -> Gain:
    """Return the gain in the mean over events (NDCG), paired by user."""
    return paired_gain(
        lambda weights: (float(np.average(ours, weights=weights)), float(np.average(theirs, weights=weights))),
        users,
        rounds=rounds,
        seed=seed,
    )


class OnlineCounters:
    """What counting alone achieves: smoothed user and item means for like, counts for interact; up to date at once, without lag."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self._all = [0.0, 0.0]
        self._users: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._items: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, user_id: str, item_id: str, liked: float) -> None:
        """Count one opinion, 1 for like and 0 for dislike."""
        for counter in (self._all, self._users[user_id], self._items[item_id]):
            counter[0] += 1.0
            counter[1] += liked

    def like_score(self, user_id: str, item_id: str) -> float:
        """Return the sum of the user's and the item's smoothed like rates."""
        prior = (self._all[1] + 0.5) / (self._all[0] + 1.0)
        return sum(
            (likes + MEAN_PRIOR * prior) / (count + MEAN_PRIOR)
            for count, likes in (self._users.get(user_id, (0.0, 0.0)), self._items.get(item_id, (0.0, 0.0)))
        )

    def popularity(self, item_ids: Sequence[str]) -> FloatArray:
        """Return how often each item was chosen so far."""
        return np.asarray([self._items[item_id][0] if item_id in self._items else 0.0 for item_id in item_ids])
