"""How often the held-out report's 95 % intervals hold the truth: simulated users, through the real measures and the real intervals.

Users differ in how many rows they have (heavy tails), in how often they like what they see, and in how well they are understood; the truth
is the same measure over so many users that nothing is left to chance. The paired gain compares two scores that share their noise in part.
`python tests/interval_coverage.py DRAWS` prints the coverage by number of users.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.trainer.held_out.estimates import Estimate, auc, calibration, gauc, log_loss, ndcg_of_users

Floats = NDArray[np.float64]

NUM_USERS = (20, 50, 200, 1000)
_TRUTH_USERS = 100_000


class Rows(NamedTuple):
    """Labelled rows of users."""

    labels_N: Floats
    better_N: Floats
    worse_N: Floats
    user_N: NDArray[np.int64]
    num_users: int


def drawn(rng: np.random.Generator, num_users: int) -> Rows:
    """Return rows of users: sizes are lognormal (median 12, the largest of 1,000 about 300)."""
    sizes_U = np.clip(np.exp(rng.normal(2.5, 1.1, num_users)), 1, 2000).astype(np.int64)
    user_N = np.repeat(np.arange(num_users), sizes_U)
    likes_U, grasp_U = rng.normal(-1.0, 0.8, num_users), np.exp(rng.normal(0.0, 0.4, num_users))
    taste_N = rng.normal(0.0, 1.2, len(user_N))
    labels_N = (rng.random(len(user_N)) < 1.0 / (1.0 + np.exp(-(likes_U[user_N] + taste_N)))).astype(np.float64)
    seen_N = -1.0 + 0.6 * (likes_U[user_N] + 1.0) + taste_N * np.minimum(grasp_U[user_N], 1.0)
    noise_N = rng.normal(0.0, 0.6, len(user_N))
    better_N, worse_N = seen_N + noise_N, seen_N + noise_N + rng.normal(0.0, 0.8, len(user_N))
    return Rows(labels_N, 1.0 / (1.0 + np.exp(-better_N)), 1.0 / (1.0 + np.exp(-worse_N)), user_N, num_users)


def _of(measure: Callable[[Floats, Floats, NDArray[np.int64], int], Estimate]) -> Callable[[Rows], Estimate]:
    return lambda rows: measure(rows.labels_N, rows.better_N, rows.user_N, rows.num_users)


def _gain(measure: Callable[[Floats, Floats, NDArray[np.int64], int], Estimate]) -> Callable[[Rows], Estimate]:
    return lambda rows: _of(measure)(rows).minus(measure(rows.labels_N, rows.worse_N, rows.user_N, rows.num_users))


MEASURES: Mapping[str, Callable[[Rows], Estimate]] = {
    "auc": _of(auc),
    "gauc": _of(gauc),
    "ndcg10": _of(ndcg_of_users),
    "log_loss": _of(log_loss),
    "calibration": _of(calibration),
    "gain in auc": _gain(auc),
    "gain in gauc": _gain(gauc),
    "gain in ndcg10": _gain(ndcg_of_users),
    "gain in log_loss": _gain(log_loss),
}


def truths() -> dict[str, float]:
    """Return the value of every measure over very many users."""
    rows = drawn(np.random.default_rng(1), _TRUTH_USERS)
    return {name: measure(rows).value for name, measure in MEASURES.items()}


def coverage(num_users: int, draws: int, truth: Mapping[str, float], seed: int = 0) -> dict[str, float]:
    """Return by measure the share of draws whose interval holds the truth; draws without an interval do not count."""
    held: dict[str, list[bool]] = {name: [] for name in MEASURES}
    for draw in range(draws):
        rows = drawn(np.random.default_rng((seed, num_users, draw)), num_users)
        for name, measure in MEASURES.items():
            interval = measure(rows).interval()
            if interval is not None:
                held[name].append(interval.low <= truth[name] <= interval.high)
    return {name: float(np.mean(own)) for name, own in held.items()}


def percentile_bootstrap(rows: Rows, rounds: int, rng: np.random.Generator) -> tuple[float, float]:
    """Return the ends of the usual bootstrap's interval of the AUC: users drawn with replacement."""
    starts = np.searchsorted(rows.user_N, np.arange(rows.num_users + 1))
    found = []
    for _ in range(rounds):
        chosen = rng.integers(rows.num_users, size=rows.num_users)
        places_N = np.concatenate([np.arange(starts[user], starts[user + 1]) for user in chosen])
        found.append(auc(rows.labels_N[places_N], rows.better_N[places_N], rows.user_N[places_N], rows.num_users).value)
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    num_draws, truth = int(sys.argv[1]), truths()
    for users in NUM_USERS:
        print(
            f"{users} users: " + ", ".join(f"{name} {share:.3f}" for name, share in coverage(users, num_draws, truth).items()), flush=True
        )
    for users in NUM_USERS[:3]:
        inside = []
        for draw in range(num_draws // 5):
            own = drawn(np.random.default_rng((0, users, draw)), users)
            low, high = percentile_bootstrap(own, 300, np.random.default_rng(draw))
            inside.append(low <= truth["auc"] <= high)
        print(f"{users} users, for comparison: auc by a percentile bootstrap of 300 rounds {np.mean(inside):.3f}", flush=True)
