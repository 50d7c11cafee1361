"""How fast this machine is just now: a loop of two seconds, once at the start of a run. `python tests/speed.py` prints it.

First one process alone, then two at once, for a second each, do what the tests mostly do: plain Python and small numpy calls. The factor
says how many times fewer rounds they get through than on the reference machine; limits (tests/limits.py) grow with it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np

# Rounds per second of one process on the reference machine: two idle cores (AVX-512, 2.6 GHz).
REFERENCE_ALONE = 5_800.0
REFERENCE_PAIR = 5_700.0
# A machine that stands still for most of the loop says nothing about the next ten minutes.
MAX_FACTOR = 20.0
READY, GO = "ready\n", "go\n"


@dataclass(frozen=True, slots=True)
class Speed:
    """Rounds per second of one process alone, and of the slower of two at once."""

    alone: float
    pair: float

    @property
    def factor(self) -> float:
        """How many times slower than the reference, from 1 (as fast, or faster) to 20; the worse of the two measurements."""
        worst = max(REFERENCE_ALONE / self.alone, REFERENCE_PAIR / self.pair)
        return round(min(MAX_FACTOR, max(1.0, worst)), 2)

    def __str__(self) -> str:
        return (
            f"speed factor {self.factor:g}: {self.alone:.0f} rounds/s alone (reference {REFERENCE_ALONE:.0f}), "
            f"{self.pair:.0f} each of two at once (reference {REFERENCE_PAIR:.0f})"
        )


def measure(seconds: float = 1.0) -> Speed:
    """Measure for `seconds` in one process alone, then for `seconds` in two at once."""
    alone = rounds_per_second(seconds)
    with subprocess.Popen([sys.executable, __file__, str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == READY
        other.stdin.write(GO)
        other.stdin.flush()
        here = rounds_per_second(seconds)
        there = float(other.stdout.readline())
    return Speed(alone, min(here, there))


def rounds_per_second(seconds: float) -> float:
    """Do rounds for about `seconds`; return how many went through in a second."""
    values = np.random.default_rng(0).random(2_000)
    started = time.perf_counter()
    rounds = 0
    while (elapsed := time.perf_counter() - started) < seconds:
        counts: dict[int, int] = {}
        for number in range(2_000):
            key = number * 2_654_435_761 % 997
            counts[key] = counts.get(key, 0) + 1
        np.sort(values * len(counts)).cumsum()
        rounds += 1
    return rounds / elapsed


def main(arguments: list[str]) -> None:
    """Without arguments print this machine's speed; with seconds be the second process of `measure`."""
    if not arguments:
        print(measure())
        return
    sys.stdout.write(READY)
    sys.stdout.flush()
    assert sys.stdin.readline() == GO
    print(rounds_per_second(float(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
