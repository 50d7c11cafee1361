"""Whether a measured series grows: Theil-Sen's slope with its confidence interval, and a size below which growth does not matter. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import theilslopes

MIN_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class Trend:
    """The trend of one series.

    Attributes:
        slope_per_s, low_per_s, high_per_s: median slope of all pairs and its 95 % interval, in units per second.
        median: of the values.
        growth: what the slope makes of the whole time, in units.
        tolerance: growth up to this does not count.
    """

    slope_per_s: float
    low_per_s: float
    high_per_s: float
    median: float
    growth: float
    tolerance: float

    @property
    def grows(self) -> bool:
        """Whether it surely rises, and by more than the tolerance."""
        return self.low_per_s > 0 and self.growth > self.tolerance


def trend_of(at_s: Sequence[float], values: Sequence[float], *, tolerance: float) -> Trend:
    """Return the trend of a series.

    The slope is the median over all pairs of samples, so that up to 29 % of spikes (a snapshot's child process, a burst) change nothing;
    its interval is from Kendall's tau. Neighbouring samples of a process are alike, which makes the interval too narrow: the tolerance,
    not significance, is what keeps noise from counting as growth.

    Args:
        at_s: seconds, increasing.
        values: one per time.
        tolerance: in the values' unit, for the whole time.
    Raises:
        ValueError: fewer than 8 samples.
    Source: Theil 1950; Sen 1968, "Estimates of the regression coefficient based on Kendall's tau".
    """
    if len(values) < MIN_SAMPLES:
        raise ValueError(f"{len(values)} samples are too few for a trend; it takes {MIN_SAMPLES}")
    slope, _, low, high = theilslopes(np.asarray(values, dtype=np.float64), np.asarray(at_s, dtype=np.float64), alpha=0.95)
    duration_s = at_s[-1] - at_s[0]
    return Trend(float(slope), float(low), float(high), float(np.median(values)), float(slope) * duration_s, tolerance)
