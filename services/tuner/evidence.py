"""How strongly paired answers speak for a claim: e-values, which may be looked at after every batch. Pure.

A claim is about a mean ("the candidate is worse by less than five points"). Each question gives a number z, whose mean is at most 0 while
the claim does not hold. A gambler who stakes a share s of what she has on each question multiplies it by 1 + s·z, and gains nothing in
the long run while the claim does not hold: what she has, starting from 1, exceeds 1/alpha at any time with probability alpha at most
(Ville 1939). So a look after each batch costs nothing, unlike with intervals. Eight gamblers of different stakes play at once, and their
mean is the e-value: it does not depend on the order of the questions.

Source: Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting".
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

_SHARES_K = np.geomspace(0.05, 0.95, 8)
"""Stakes as shares of the largest that cannot lose more than there is. Small ones for small differences among many questions, large ones
for large differences among few."""
MAX_FORESEEN = 100_000


def log_e_value(z_N: Numbers, lowest: float) -> float:
    """Return the natural logarithm of the evidence for "the mean of z is above 0"; 0 over no question.

    Args:
        z_N: one number a question, each >= lowest.
        lowest: below 0: the smallest value that z can take.
    """
    return _log_mean(_log_wealth(z_N, lowest))


def more_needed(z_N: Numbers, lowest: float, log_threshold: float) -> int | None:
    """Return how many more questions like these would take the evidence to a threshold: 0 when it is there, None when they speak against
    the claim, or so weakly for it that MAX_FORESEEN would not do.
    """
    num = len(z_N)
    if num == 0:
        return None
    rates_K = _log_wealth(z_N, lowest) / num
    too_few, enough = num - 1, num
    while _log_mean(enough * rates_K) < log_threshold:
        too_few, enough = enough, 2 * enough
        if too_few > MAX_FORESEEN:
            return None
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if _log_mean(middle * rates_K) >= log_threshold else (middle, enough)
    return enough - num


def _log_mean(logs_K: Numbers) -> float:
    highest = float(logs_K.max())
    return highest + math.log(float(np.exp(logs_K - highest).mean()))


def _log_wealth(z_N: Numbers, lowest: float) -> Numbers:
    stakes_K = _SHARES_K / -lowest
    # z takes few values where answers are right or wrong: each is looked at once.
    values_V, counts_V = np.unique(z_N, return_counts=True)
    wealth_K: Numbers = np.log1p(np.outer(stakes_K, values_V)) @ counts_V.astype(np.float64)
    return wealth_K
