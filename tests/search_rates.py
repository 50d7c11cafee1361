"""How often a search decides rightly: `python tests/search_rates.py SEARCHES TRIALS` (ml environment) searches in made-up worlds.

The searches are those of `make search` (study, pruner, runner); only the training is made up. In each world one of four networks is right,
one rate matters much and another little, their best values are drawn for that world, and what a trial is told is its true loss and noise.
Beside it: the best one of as many trials drawn at random.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml

from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.search.measure import PORTIONS, Objective
from services.trainer.search.report import trial_rows
from services.trainer.search.space import load_space
from services.trainer.search.study import Study
from services.trainer.search.trials import Limits, Runner

NETWORKS = ("dcn_din", "deepfm", "din", "mmoe")
RATES = {"learning.dense_rate": (1e-4, 1e-1), "learning.user_rate": (1e-2, 1.0)}
NOISE = 0.01
NEAR = 0.02
TASK = "interact"


class World:
    """True losses, relative to the start's."""

    def __init__(self, seed: int) -> None:
        """Draw one."""
        self.rng = np.random.default_rng(seed)
        self.network = str(self.rng.choice(NETWORKS))
        self.best = {key: self.rng.uniform(np.log10(low), np.log10(high)) for key, (low, high) in RATES.items()}

    def loss(self, values: Mapping[str, Any]) -> float:
        """Return the true loss; .8 at best."""
        off = [np.log10(values[key]) - best for key, best in self.best.items()]
        return float(0.8 + 0.06 * (values["network"] != self.network) + 0.08 * off[0] ** 2 + 0.01 * off[1] ** 2)

    def told(self, values: Mapping[str, Any]) -> float:
        """Return what a measurement says."""
        return self.loss(values) + float(self.rng.normal(0.0, NOISE))

    def drawn(self) -> dict[str, Any]:
        """Return values drawn at random."""
        rates = {key: 10 ** self.rng.uniform(np.log10(low), np.log10(high)) for key, (low, high) in RATES.items()}
        return {"network": str(self.rng.choice(NETWORKS))} | rates


def searched(world: World, trials: int, seed: int, folder: Path) -> tuple[float, int]:
    """Return the true loss of what a search takes, and how many portions its trials learned."""
    document = yaml.safe_load(Path("model_repo/ranker/feature_spec.yaml").read_text(encoding="utf-8"))
    ranges = {key: {"float": list(limits), "log": True} for key, limits in RATES.items()}
    (folder / "space.yaml").write_text(yaml.safe_dump({"network": {"choice": list(NETWORKS)}} | ranges), encoding="utf-8")
    space = load_space(folder / "space.yaml", document, FeatureSpec.parse(document))
    study = Study(folder, space, seed=seed, pruner="median", fingerprint="simulated")
    start = {TASK: {"log_loss": 1.0}}
    study.set_start(start, [{TASK: 1.0}] * PORTIONS, parameters=1, seconds=0.0)
    learned = 0

    def learn(spec: FeatureSpec, parts: object, config: object, *, on_portion: Any, after_step: Any) -> Any:
        nonlocal learned
        values = {"network": spec.network.name} | {key: getattr(spec.learning, key.partition(".")[2]) for key in RATES}
        for number in range(1, PORTIONS + 1):
            learned += 1
            # Portions are smaller than the validation part, and losses of the first ones say less of the end.
            on_portion(number, {TASK: world.told(values) + float(world.rng.normal(0.0, 2 * NOISE)) / number})
        told = world.told(values)
        return SimpleNamespace(by_task=lambda: {TASK: {"log_loss": told}}, parameters=1)

    runner = Runner(
        study=study,
        parts=None,  # type: ignore[arg-type]
        config=None,  # type: ignore[arg-type]
        objective=Objective("log_loss", (TASK,), start, [{TASK: 1.0}] * PORTIONS),
        tell=lambda _: None,
        learn=learn,
    )
    runner.run(Limits(trials=trials, deadline=None))
    done = [row for row in trial_rows(study) if row["value"] is not None]
    return world.loss(min(done, key=lambda row: row["value"])["values"]), learned


def at_random(world: World, trials: int) -> float:
    """Return the true loss of the one that looks best among as many at random."""
    drawn = [world.drawn() for _ in range(trials)]
    return world.loss(min(drawn, key=world.told))


def main(draws: int, trials: int = 20) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for seed in range(draws):
            own = Path(folder) / str(seed)
            own.mkdir()
            found.append(searched(World(seed), trials, seed, own))
    chance = [at_random(World(seed), trials) for seed in range(1_000)]
    one = [World(seed).loss(World(seed).drawn()) for seed in range(1_000)]
    print(f"{draws} searches of {trials} trials; near: a true loss at most {NEAR} above the best possible; noise {NOISE}")
    for name, losses in (
        (f"search ({draws})", [loss for loss, _ in found]),
        ("random, best of as many (1000)", chance),
        ("one draw (1000)", one),
    ):
        losses_N = np.asarray(losses) - 0.8
        print(f"  {name:32} near {np.mean(losses_N <= NEAR):.2f}  mean regret {losses_N.mean():.4f}")
    print(f"  portions learned: {sum(portions for _, portions in found) / (draws * trials * PORTIONS):.2f} of all")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
