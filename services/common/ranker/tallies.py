"""Counts of acts and of the opinions that they stated: of one thing, and of N items as arrays.

Opinions are on the 0..1 scale (FeatureSpec.normalised). Knows neither the feature spec nor where counts are kept.
Shapes: N items, H half-lives, M = 4 + 3H numbers an item.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

# The middle of the scale: stands for the opinion of an act that states none.
NEUTRAL_VALUE = 0.5


class Tally(NamedTuple):
    """Number of acts, how many of them stated an opinion, and the sum of those opinions (0..1 each)."""

    acts: float
    rated: float
    value_sum: float

    def plus(self, value: float | None) -> Tally:
        """Return this tally with one more act."""
        if value is None:
            return Tally(self.acts + 1, self.rated, self.value_sum)
        return Tally(self.acts + 1, self.rated + 1, self.value_sum + value)

    def add(self, other: Tally) -> Tally:
        """Return the sum of both."""
        return Tally(self.acts + other.acts, self.rated + other.rated, self.value_sum + other.value_sum)


EMPTY_TALLY = Tally(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class ItemMatrix:
    """Merged item states as columns; decayed counters are brought up to the present."""

    tally_N3: Float64Array
    """acts, rated, value_sum."""
    value_sq_sum_N: Float64Array
    decayed_NH3: Float64Array

    def __len__(self) -> int:
        return len(self.tally_N3)

    @classmethod
    def of_sums(cls, sums_NM: Float64Array) -> ItemMatrix:
        """Return views of float64 [N, 4 + 3H]: per item acts, rated, value_sum, the sum of squared values, then a tally a half-life."""
        return cls(sums_NM[:, :3], sums_NM[:, 3], sums_NM[:, 4:].reshape(len(sums_NM), -1, 3))
