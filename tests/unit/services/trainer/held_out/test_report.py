from __future__ import annotations

import json

import numpy as np
import pytest

from services.common.ranker.states import Interaction
from services.trainer.held_out.counters import NAMES
from services.trainer.held_out.render import markdown, short
from services.trainer.held_out.report import best_baseline, compare
from services.trainer.held_out.scored import FROZEN, LIVE, Collector
from tests.learning import SPEC

INTERACT, LIKE = (SPEC.task_names.index(name) for name in ("interact", "like"))


def collected(events: int = 400, *, kinds: tuple[str, ...] = ("rating",)):
    """Half of the users and items known; live knows the chosen item and who likes it, frozen half as well, counters nothing."""
    rng = np.random.default_rng(0)
    collector = Collector(SPEC, {f"u{user}" for user in range(10)}, {str(item) for item in range(50)})
    for number in range(events):
        stars = float(rng.integers(1, 6))
        interaction = Interaction(f"u{rng.integers(20)}", str(rng.integers(100)), kinds[number % len(kinds)], stars, number)
        scores = {}
        for name in (LIVE, FROZEN, *NAMES):
            noise = {LIVE: 0.02, FROZEN: 0.2}.get(name)
            own = rng.random((10, 2)).astype(np.float32)
            if noise is not None:
                truth = np.stack([np.arange(10) == 0, np.full(10, stars >= 4)], axis=1)
                own = np.clip(0.1 + 0.3 * truth + noise * rng.normal(size=(10, 2)), 0.001, 0.999).astype(np.float32)
            scores[name] = own
        collector.add(interaction, scores)
    return collector.scored()


def whole_report(events=None) -> dict:
    return {
        "base": {"model": "m", "learned": "All.", "state_hash": "h", "rows": {"user": 1}, "set_aside": {"value is missing": 2}},
        "seconds": {"training": 1.0},
        "coverage": "c",
        "held_out": {"first_part": 3, "events": 400, "scored": 400, "users": 20, "new_users": 10, "from": "a", "to": "b"},
        "tasks": compare(collected() if events is None else events),
    }


def test_the_better_contestant_is_seen_and_its_gain_is_above_zero() -> None:
    found = compare(collected())["interact"]["all"]
    contestants = found["contestants"]
    assert contestants[LIVE]["auc"]["value"] > contestants[FROZEN]["auc"]["value"] > 0.8
    assert contestants["items"]["auc"]["low"] < 0.5 < contestants["items"]["auc"]["high"]
    for metric in ("auc", "gauc", "ndcg10"):
        assert found["live_minus"][FROZEN][metric]["low"] > 0
    assert (found["events"], found["labels"], found["positives"]) == (400, 4000, 400)
    assert contestants["items"]["calibration"]["value"] == pytest.approx(5.0, rel=0.1)  # ten of .5 on average, and one positive


def test_a_task_whose_unanswered_items_say_nothing_is_measured_on_answers_alone() -> None:
    found = compare(collected())["like"]["all"]
    assert (found["events"], found["labels"]) == (400, 400)
    assert found["contestants"][LIVE]["auc"]["value"] > 0.99
    assert found["contestants"][LIVE]["ndcg10"]["value"] > 0.99
    assert "users_and_items" in found["contestants"]
    assert "users_and_items" not in compare(collected())["interact"]["all"]["contestants"]


def test_slices_divide_the_events() -> None:
    found = compare(collected(kinds=("rating", "click")))
    counts = {name: own["events"] for name, own in found["interact"].items()}
    assert counts["all"] == 400
    for parts in (("known_users", "new_users"), ("known_items", "new_items"), ("kind_click", "kind_rating")):
        assert sum(counts[name] for name in parts) == 400
    # A click says nothing about liking.
    assert "kind_click" not in found["like"]
    assert "kind_click" not in compare(collected())["interact"]


def test_a_kind_that_says_nothing_about_a_task_gives_it_negatives_only() -> None:
    raw = SPEC.model_dump(mode="json")
    raw["kinds"]["play"] = {}
    raw["tasks"][1]["labels"]["play"] = 1
    spec = type(SPEC).parse(raw)
    collector = Collector(spec, set(), set())
    scores = {name: np.full((4, 2), 0.25, np.float32) for name in (LIVE, FROZEN, *NAMES)}
    collector.add(Interaction("u", "a", "play", 1.0, 0), scores)
    tasks = compare(collector.scored())
    assert (tasks["interact"]["all"]["labels"], tasks["interact"]["all"]["positives"]) == (3, 0)
    assert tasks["interact"]["all"]["contestants"][LIVE]["ndcg10"]["value"] is None
    assert (tasks["like"]["all"]["labels"], tasks["like"]["all"]["positives"]) == (1, 1)


def test_the_report_is_json_without_nan_and_reads_as_tables() -> None:
    for events in (None, Collector(SPEC, set(), set()).scored()):
        report = whole_report(events)
        assert json.loads(json.dumps(report, allow_nan=False)) == report
        page = markdown(report)
        assert page.startswith("# Held-out report of m\n")
        widths = {line.count("|") for line in page.splitlines() if line.startswith("|")}
        assert widths <= {7}
        assert "- set aside: 2 events whose value is missing" in page
        assert len({len(line.split("  ")) > 0 for line in short(report)}) == 1
    lines = list(short(whole_report()))
    assert "400 of 403 events (a to b), all scored; 20 users, 10 of them new" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["interact"] * 5 + ["like"] * 5


def test_the_strongest_baseline_is_the_one_to_beat() -> None:
    def measured(auc: float | None, loss: float) -> dict:
        return {"auc": {"value": auc}, "log_loss": {"value": loss}}

    contestants = {"live": measured(0.9, 0.1), "items": measured(0.6, 0.3), "recent_items": measured(0.7, 0.4), "x": measured(None, 0.9)}
    among = dict.fromkeys(("items", "recent_items", "x"))
    assert best_baseline(contestants, "auc", among) == "recent_items"
    assert best_baseline(contestants, "log_loss", among) == "items"
    assert best_baseline({"x": measured(None, 0.9)}, "auc", among) is None
