"""The deep tests: in which units they run, what each unit costs, and which of them a run of limited time takes.

`make test-deep` runs all units, one after the other. CI has a budget of minutes: the units are laid into as few groups as possible, each
of which fits the budget; the commit's hash draws one group, and what is left of the budget goes to other units. So in each merge every
unit, cheap or dear, has at least the chance of one group in all (tests/unit/tests/test_deep.py says how many merges that takes).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.run.execution import run_phase
from tests.run.plan import ROOT, Lane
from tests.run.report import Outcome, summarise

# A unit that takes so many times its cost (and these seconds) hangs: the run ends it and fails.
_OVERRUN, _OVERRUN_S = 3.0, 300.0


@dataclass(frozen=True, slots=True)
class Unit:
    """Deep tests that run in one pytest process: whole files or a folder, of which only the tests marked `deep` count."""

    name: str
    environment: str
    paths: tuple[str, ...]
    """Files, or a folder with all its files; relative to the repository."""
    seconds: int
    """What it takes on the reference machine, alone, start and end included."""

    def files(self) -> list[str]:
        """The test files, relative to the repository."""
        inside = [(ROOT / path).rglob("test_*.py") if (ROOT / path).is_dir() else [ROOT / path] for path in self.paths]
        return sorted(path.relative_to(ROOT).as_posix() for paths in inside for path in paths)

    @property
    def lane(self) -> Lane:
        """The process that runs it."""
        marker = "deep and ml" if self.environment == "ml" else "deep and not ml"
        paths = tuple(str(ROOT / path) for path in self.paths)
        return Lane(name=f"deep-{self.name.replace(' ', '-')}", environment=self.environment, marker=marker, paths=paths)


# A file whose tests are marked `deep` stands in one of these.
UNITS: tuple[Unit, ...] = (
    Unit("demo in small", "light", ("tests/e2e/test_demo_in_small.py",), 420),
    Unit("demo of ranking", "light", ("tests/e2e/test_demo_of_ranking.py",), 250),
    Unit("kills of the ranking half", "light", ("tests/faults/test_ranking_kills.py",), 110),
    Unit("kills of the language half", "light", ("tests/faults/test_language_kills.py",), 240),
    Unit("broker outage", "light", ("tests/faults/test_broker_outage.py",), 75),
    Unit(
        "refused records",
        "light",
        ("tests/integration/router/test_refused_records.py", "tests/integration/common/test_refused_letters.py"),
        90,
    ),
    Unit("soak in small", "light", ("tests/faults/test_soak_in_small.py",), 150),
    Unit("deaths of infrastructure", "light", ("tests/integration/mesh/test_infrastructure_of_the_mesh.py",), 40),
    Unit("package set of the light image", "light", ("tests/integration/mesh/test_images.py",), 90),
    Unit(
        "kills of streams",
        "light",
        (
            "tests/integration/streams/test_joiner.py",
            "tests/integration/streams/test_features.py",
            "tests/integration/streams/test_poison.py",
            "tests/integration/streams/test_orphans.py",
        ),
        150,
    ),
    Unit("rates of the quality gate", "light", ("tests/integration/trainer/test_quality_gate_rates.py",), 75),
    Unit("features in Feast", "ml", ("tests/integration/trainer/test_feast.py",), 90),
    Unit(
        "kills of the trainer",
        "ml",
        ("tests/faults/test_trainer_kill.py", "tests/faults/test_batch_training_kill.py", "tests/faults/test_search_kill.py"),
        200,
    ),
    Unit(
        "searches",
        "ml",
        ("tests/integration/trainer/test_search_finds.py", "tests/integration/trainer/test_search_on_ray.py"),
        80,
    ),
    Unit("planted interactions", "ml", ("tests/integration/trainer/test_wide_networks.py",), 50),
    Unit("calibration of labels", "ml", ("tests/integration/trainer/test_calibration.py",), 50),
    Unit("memory of reading", "ml", ("tests/integration/trainer/test_reading_memory.py",), 90),
    Unit("kills under client producers", "light", ("tests/integration/tunemesh_client/test_event_producer.py",), 60),
    Unit("fuzz", "light", ("tests/fuzz",), 330),
    Unit("healing on a broker", "ml", ("tests/faults/test_healing_on_a_broker.py",), 50),
    Unit("healing of replicas", "light", ("tests/faults/test_healing_of_replicas.py",), 10),
    Unit("networks on Triton", "ml", ("tests/integration/ranker/test_networks_on_triton.py",), 45),
    Unit("planted secrets", "light", ("tests/integration/test_secrets.py",), 45),
    Unit("tunes of the packaged model", "ml", ("tests/integration/tuner/test_gate_on_measured_slices.py",), 180),
)


def groups(units: Sequence[Unit], budget_s: float, factor: float) -> list[list[Unit]]:
    """Lay the units into groups that each fit the budget (first fit, the longest first); those that do not fit it alone are left out."""
    laid: list[list[Unit]] = []
    for unit in sorted(units, key=lambda unit: (-unit.seconds, unit.name)):
        if unit.seconds * factor > budget_s:
            continue
        group = next((group for group in laid if _cost([*group, unit], factor) <= budget_s), None)
        if group is None:
            laid.append(group := [])
        group.append(unit)
    return laid


def order(units: Sequence[Unit], budget_s: float, factor: float, commit: str) -> list[Unit]:
    """Return all units in the order in which a run at `commit` takes them while they fit: the group drawn, then the others."""
    laid = groups(units, budget_s, factor)
    draw = int.from_bytes(hashlib.sha256(commit.encode()).digest()[:8], "big")
    turned = laid[draw % len(laid) :] + laid[: draw % len(laid)] if laid else []
    ordered = [unit for group in turned for unit in group]
    return [*ordered, *(unit for unit in units if unit not in ordered)]


def _cost(units: Sequence[Unit], factor: float) -> float:
    return factor * sum(unit.seconds for unit in units)


def named(names: Sequence[str]) -> tuple[Unit, ...]:
    """Return the units of these names; all where there are none. Raises ValueError for a name that no unit has."""
    unknown = [name for name in names if name not in {unit.name for unit in UNITS}]
    if unknown:
        raise ValueError(f"no unit is called {', '.join(unknown)}; there are {', '.join(unit.name for unit in UNITS)}")
    return tuple(unit for unit in UNITS if not names or unit.name in names)


def run(extra: Sequence[str], *, factor: float, budget_minutes: float | None, commit: str, names: Sequence[str] = ()) -> int:
    """Run the deep tests, all or what fits; print the summary, which units ran and which did not, and return 0 when all passed.

    names: of units; none: all of them.
    """
    started, units = time.monotonic(), named(names)
    budget_s = float("inf") if budget_minutes is None else budget_minutes * 60.0
    if budget_minutes is not None:
        cost_s = _cost(units, factor)
        print(
            f"deep tests: {cost_s:.0f} s in {len(units)} units, budget {budget_s:.0f} s, drawn by commit {commit[:12] or '(none)'}",
            flush=True,
        )
    outcomes: list[Outcome] = []
    ran: list[str] = []
    left_out: list[str] = []
    for unit in order(units, budget_s, factor, commit):
        planned_s = unit.seconds * factor
        if time.monotonic() - started + planned_s > budget_s:
            left_out.append(f"{unit.name} ({planned_s:.0f} s)")
            continue
        outcomes += run_phase([unit.lane], extra, limit_s=_OVERRUN * planned_s + _OVERRUN_S * factor)
        ran.append(f"{unit.name} ({outcomes[-1].seconds:.0f} of {planned_s:.0f} s)")
    remark = f"; deep units run: {', '.join(ran) or 'none'}; not run: {', '.join(left_out) or 'none'}"
    return 0 if summarise(outcomes, time.monotonic() - started, remark=remark) else 1
