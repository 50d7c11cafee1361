"""Which precision the ranker scores in: measured, and fp32 unless bf16 is plainly faster."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from services.common.ranker.networks.scoring import Precision, faster_precision

pytestmark = pytest.mark.ml

Times = Callable[[Precision, int], float]


def chosen(times: Times, seed: int = 0, *, noise: bool = True) -> Precision:
    """Return the choice on a machine where scoring takes `times`, up to ten times as long at random."""
    source, now = random.Random(seed), [0.0]

    def run(precision: Precision, num_items: int) -> None:
        now[0] += times(precision, num_items) * (min(source.paretovariate(1.0), 10.0) if noise else 1.0)

    return faster_precision(run, lambda: now[0])


def with_factor(factor: float) -> Times:
    return lambda precision, num_items: (0.3e-3 + num_items * 2e-6) * (factor if precision == "bf16" else 1.0)


def test_bf16_must_be_faster_at_every_size() -> None:
    assert chosen(with_factor(0.5), noise=False) == "bf16"
    assert chosen(with_factor(0.9), noise=False) == "fp32"
    assert chosen(with_factor(1.7), noise=False) == "fp32"
    assert chosen(lambda precision, num_items: 1.0 if precision == "fp32" else 0.1 if num_items < 500 else 2.0, noise=False) == "fp32"


def test_error_rates_of_the_choice_on_a_busy_machine() -> None:
    draws = 2_000
    assert sum(chosen(with_factor(1.0), seed) == "bf16" for seed in range(draws)) == 0
    assert sum(chosen(with_factor(0.5), seed) == "bf16" for seed in range(draws)) >= 0.99 * draws
