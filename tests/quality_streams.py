"""How often the publish gate is wrong about quality: hours of simulated streams through the real gate.

A clean stream is not a quiet one: the share of positives follows the hour of the day and wanders from minute to minute, traffic comes in
bursts, users differ (heavy tails) and a request's items share their user, and the model is always a little
behind. `python tests/quality_streams.py HOURS` prints the rates.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from services.trainer.matured import quality_of_block
from services.trainer.quality_gate import QualityGate
from services.trainer.settings import TrainerSettings

BLOCKS_AN_HOUR = 120
_BLOCKS_A_DAY = 24 * BLOCKS_AN_HOUR
_ITEMS = 12

Floats = NDArray[np.float64]
Harm = Callable[[np.random.Generator, Floats, Floats], tuple[Floats, Floats]]


class Stream:
    """Blocks of one task, of the smallest size: some 200 positives among 1,700 labels."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._phase = self._rng.uniform(0, 2 * math.pi)
        self._wandering = 0.0
        self._bias = -2.2  # the model's
        self._at = 0

    def block(self, harm: Harm | None = None) -> tuple[Floats, Floats]:
        """Return labels and scores."""
        rng = self._rng
        self._at += 1
        self._wandering = 0.8 * self._wandering + rng.normal(0, 0.1)
        base = -2.2 + 0.5 * math.sin(2 * math.pi * self._at / _BLOCKS_A_DAY + self._phase) + self._wandering
        num_requests = max(int(140 * math.exp(rng.normal(0, 0.3))), 110)
        user_N = np.repeat(0.4 * rng.standard_t(4, num_requests), _ITEMS)
        item_N = rng.normal(0, 1.0, len(user_N))
        labels_N = (rng.random(len(user_N)) < 1 / (1 + np.exp(-(base + user_N + item_N)))).astype(np.float64)
        logits_N = self._bias + 0.7 * user_N + 0.9 * item_N + rng.normal(0, 0.3, len(user_N))
        scores_N = 1 / (1 + np.exp(-logits_N))
        self._bias += 0.2 * math.log(max(labels_N.sum(), 1.0) / scores_N.sum())
        return (labels_N, scores_N) if harm is None else harm(rng, labels_N, scores_N)


def refused_after(stream: Stream, gate: QualityGate, num_blocks: int, harm: Harm | None = None) -> int | None:
    """Return how many blocks the gate took until it refused; None when it did not."""
    for number in range(1, num_blocks + 1):
        labels_N, scores_N = stream.block(harm)
        gate.judge(quality_of_block("task", labels_N, scores_N))
        if gate.refusal:
            return number
    return None


def new_gate() -> QualityGate:
    return QualityGate(TrainerSettings().quality_limits)


def false_alarms(hours: int, first_seed: int = 0) -> int:
    """Return in how many hours, each of a stream of its own, a clean stream is refused."""
    return sum(refused_after(Stream(first_seed + hour), new_gate(), BLOCKS_AN_HOUR) is not None for hour in range(hours))


def _score_of_another(share: float) -> Harm:
    """So much of the items gets the score of another one: features or rows of the wrong entity."""

    def harm(rng: np.random.Generator, labels_N: Floats, scores_N: Floats) -> tuple[Floats, Floats]:
        hit_N = rng.random(len(scores_N)) < share
        mixed_N = scores_N.copy()
        mixed_N[hit_N] = rng.permutation(mixed_N[hit_N])
        return labels_N, mixed_N

    return harm


def _answers_at_random(share: float) -> Harm:
    """So much of the labels is turned round: bots, or a client that reports the wrong item."""

    def harm(rng: np.random.Generator, labels_N: Floats, scores_N: Floats) -> tuple[Floats, Floats]:
        hit_N = rng.random(len(scores_N)) < share
        return np.where(hit_N, 1.0 - labels_N, labels_N), scores_N

    return harm


def _answers_lost(share: float) -> Harm:
    """So much of the positives arrives as negatives: a client that lost its feedback."""

    def harm(rng: np.random.Generator, labels_N: Floats, scores_N: Floats) -> tuple[Floats, Floats]:
        return labels_N * (rng.random(len(labels_N)) >= share), scores_N

    return harm


def _logits_times(factor: float) -> Harm:
    """The model is too sure: rates too high, about to diverge."""

    def harm(_: np.random.Generator, labels_N: Floats, scores_N: Floats) -> tuple[Floats, Floats]:
        return labels_N, 1 / (1 + (1 / scores_N - 1) ** factor)

    return harm


HARMS: Mapping[str, Harm] = {
    "a quarter of the items gets another item's score": _score_of_another(0.25),
    "half of the items gets another item's score": _score_of_another(0.5),
    "all items get another item's score": _score_of_another(1.0),
    "2 % of the labels are turned round": _answers_at_random(0.02),
    "5 % of the labels are turned round": _answers_at_random(0.05),
    "10 % of the labels are turned round": _answers_at_random(0.1),
    "half of the answers are lost": _answers_lost(0.5),
    "3 of 4 answers are lost": _answers_lost(0.75),
    "logits are doubled": _logits_times(2.0),
    "logits are four times as large": _logits_times(4.0),
}


def power(harm: Harm, streams: int) -> list[int | None]:
    """Return after how many harmed blocks each stream was refused: an hour of them, behind half an hour of clean ones."""
    found = []
    for seed in range(streams):
        stream, gate = Stream(1_000_000 + seed), new_gate()
        if refused_after(stream, gate, BLOCKS_AN_HOUR // 2) is None:
            found.append(refused_after(stream, gate, BLOCKS_AN_HOUR, harm))
    return found


if __name__ == "__main__":
    num_hours = int(sys.argv[1])
    print(f"clean: {false_alarms(num_hours)} of {num_hours} hours refused", flush=True)
    for name, one in HARMS.items():
        blocks = power(one, max(num_hours // 20, 20))
        caught = [number for number in blocks if number is not None]
        when = f"after {np.median(caught):.0f} blocks (median), {np.percentile(caught, 90):.0f} (90 %)" if caught else ""
        print(f"{name}: {len(caught)} of {len(blocks)} refused within an hour {when}", flush=True)
