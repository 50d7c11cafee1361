"""How often the adapter gate is wrong: its own code on simulated adapters whose truth is known.

    python -m tests.gate_simulation             # the table of services/tuner/README.md: 1,000 draws a row
    python -m tests.gate_simulation 100 1000    # 100 draws, 1,000 questions a slice alone

A question has a chance of being answered right that differs from question to question (a Beta in which most are nearly always or hardly
ever right); the answers of two adapters to it are drawn independently, as those of two trainings are. Batches, looks and outcomes are
those of a judgement (services/tuner/judgement.py): `judge` is its loop without the services.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from services.tuner.adapter_gate import AdapterGateLimits, Candidate, Decision, SliceAnswers, decide
from services.tuner.server import recipe_of
from services.tuner.settings import TunerSettings

SIZES = (48, 100, 250, 500, 1_000, 1_500, 2_000)
SPREAD = 1.0
"""Sum of the Beta's parameters. At 1, two equal adapters of 75 % differ in 19 % of the questions."""
BASE, LIVE = {"task": 0.05, "context": 0.5}, {"task": 0.9, "context": 0.75}
"""Shares of right answers, by slice."""
SOUND = Candidate(losses=(0.1,), norms={"layer": 1.0}, replay_share=0.25)


@dataclass(frozen=True, slots=True)
class Row:
    """A kind of candidate: by how much its share of right answers differs from the live adapter's, by slice; whether one is live at all."""

    name: str
    task: float = 0.0
    context: float = 0.0
    has_live: bool = True


ROWS = (
    Row("equal retrain"),
    Row("3 points better on both", 0.03, 0.03),
    Row("2 points worse on both", -0.02, -0.02),
    Row("5 points worse on the task", -0.05, 0.0),
    Row("5 points worse from context", 0.0, -0.05),
    Row("5 points worse on both", -0.05, -0.05),
    Row("10 points worse from context", 0.0, -0.10),
    Row("good, nothing live", 0.0, 0.0, has_live=False),
    Row("forgot to read, nothing live", 0.0, -0.40, has_live=False),
    Row("learned nothing, nothing live", -0.85, 0.0, has_live=False),
)


def limits_of(**changes: object) -> AdapterGateLimits:
    """Return the tuner's own limits."""
    return recipe_of(TunerSettings(**changes)).judging.limits  # type: ignore[arg-type]


def draw(row: Row, size: int, rng: np.random.Generator) -> Mapping[str, SliceAnswers]:
    """Return answers of all models to `size` questions of both slices."""
    answers = {}
    for name, shift in (("task", row.task), ("context", row.context)):
        live = LIVE[name]
        chance_N = rng.beta(live * SPREAD, (1 - live) * SPREAD, size)
        wanted = live + shift
        candidate_N = chance_N * wanted / live if wanted <= live else 1 - (1 - chance_N) * (1 - wanted) / (1 - live)
        right = {
            "base": (rng.random(size) < chance_N * BASE[name] / live).astype(float),
            "candidate": (rng.random(size) < candidate_N).astype(float),
        }
        if row.has_live:
            right["live"] = (rng.random(size) < chance_N).astype(float)
        answers[name] = SliceAnswers(right=right)
    return answers


def judge(answers: Mapping[str, SliceAnswers], limits: AdapterGateLimits) -> tuple[Decision, int]:
    """Return the decision of a judgement that gets these answers, and how many questions it asked."""
    asked = {name: dict.fromkeys(each.right, 0) for name, each in answers.items()}
    wanted = {name: set(each.right) for name, each in answers.items()}
    while True:
        before = sum(sum(each.values()) for each in asked.values())
        for name, roles in wanted.items():
            there = len(answers[name].right["candidate"])
            size = limits.next_size(asked[name]["candidate"], there)
            asked[name] |= dict.fromkeys(roles, size)
        so_far = {
            name: SliceAnswers(right={role: values[: asked[name][role]] for role, values in each.right.items()})
            for name, each in answers.items()
        }
        decision = decide(so_far, SOUND, limits)
        num_asked = sum(sum(each.values()) for each in asked.values())
        if decision.outcome != "undecided" or num_asked == before:
            return decision, num_asked
        wanted = {name: decision.needs(name) for name in answers}


def rates(row: Row, size: int, num_draws: int, limits: AdapterGateLimits) -> tuple[Counter[str], float]:
    """Return how often which outcome came, and the mean number of answers that a judgement asked for."""
    rng = np.random.default_rng([size, ROWS.index(row) if row in ROWS else len(ROWS)])
    outcomes: Counter[str] = Counter()
    num_asked = 0
    for _ in range(num_draws):
        decision, num = judge(draw(row, size, rng), limits)
        outcomes[decision.outcome] += 1
        num_asked += num
    return outcomes, num_asked / num_draws


def main(arguments: list[str]) -> None:
    """Print the table."""
    num_draws = int(arguments[0]) if arguments else 1_000
    sizes = [int(size) for size in arguments[1:]] or SIZES
    limits = limits_of()
    print(f"{num_draws} draws a row; accepted / refused / undecided, and answers asked for, by questions a slice")
    print(f"{'':30} " + " ".join(f"{size:>24}" for size in sizes))
    started = time.monotonic()
    for row in ROWS:
        cells = []
        for size in sizes:
            outcomes, asked = rates(row, size, num_draws, limits)
            shares = " ".join(f"{outcomes[outcome] / num_draws:.3f}" for outcome in ("accepted", "refused", "undecided"))
            cells.append(f"{shares} {asked:>6.0f}")
        print(f"{row.name:30} " + " ".join(f"{cell:>24}" for cell in cells), flush=True)
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
