"""When calls are due: arrival schedules that know nothing of how the calls go (open loop). Pure: no clock, no I/O.

A closed loop waits for an answer before it asks again, so a server that stalls is asked less and looks well: "coordinated omission"
(Schroeder, Wierman, Harchol-Balter, "Open Versus Closed: A Cautionary Tale", NSDI 2006).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Spacing = Literal["even", "poisson"]


@dataclass(frozen=True, slots=True)
class Stage:
    """A time in which calls arrive at one rate. A rate of 0 is a pause."""

    rate_per_s: float
    seconds: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate_per_s <= 10_000.0:
            raise ValueError(f"a rate of {self.rate_per_s:g} arrivals per second is not within 0 to 10,000")
        if not 0.0 < self.seconds <= 86_400.0:
            raise ValueError(f"a stage of {self.seconds:g} s is not within 0 s and a day")


@dataclass(frozen=True, slots=True)
class Arrivals:
    """A schedule of stages, one after the other.

    Attributes:
        stages: at least one.
        spacing: "even" (the same gap all through a stage) or "poisson" (independent arrivals; their number varies with the seed).
        seed: of the Poisson gaps.
    """

    stages: tuple[Stage, ...]
    spacing: Spacing = "even"
    seed: int = 0

    @classmethod
    def parse(cls, text: str, *, seconds: float, spacing: Spacing = "even", seed: int = 0) -> Arrivals:
        """Read "20" (20 a second for `seconds`) or stages such as "10x30,40x30" (10 a second for 30 s, then 40 a second for 30 s).

        Raises:
            ValueError: the text is neither; one line that says what is wrong.
        """
        return cls(tuple(_stages(text, seconds)), spacing, seed)

    @property
    def duration_s(self) -> float:
        """Seconds from the start to the end of the last stage."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def expected(self) -> float:
        """How many arrivals there are; on average, when they are Poisson."""
        return sum(stage.rate_per_s * stage.seconds for stage in self.stages)

    def offsets(self) -> Iterator[float]:
        """Yield when each call is due, in seconds from the start, in order.

        Unit-rate arrivals are stretched by the inverse of the integrated rate, so that a change of rate neither loses an arrival nor
        bunches them (Lewis and Shedler 1979, inversion).
        """
        source = random.Random(self.seed)
        due = source.expovariate(1.0) if self.spacing == "poisson" else 0.0
        passed, begin_s = 0.0, 0.0
        for stage in self.stages:
            until = passed + stage.rate_per_s * stage.seconds
            while due < until - 1e-9:
                yield begin_s + (due - passed) / stage.rate_per_s
                due += source.expovariate(1.0) if self.spacing == "poisson" else 1.0
            passed, begin_s = until, begin_s + stage.seconds


def _stages(text: str, seconds: float) -> Sequence[Stage]:
    found = []
    for part in text.split(","):
        rate, _, length = part.strip().partition("x")
        try:
            found.append(Stage(float(rate), float(length) if length else seconds))
        except ValueError as error:
            reason = str(error) if "could not convert" not in str(error) else "use RATE, or RATExSECONDS,RATExSECONDS,…"
            raise ValueError(f"{text!r}: {reason}") from None
    return found
