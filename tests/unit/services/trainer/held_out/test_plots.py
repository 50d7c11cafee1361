"""What is drawn of the held-out part: the numbers of each curve, and that the figures show these and no others."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from services.common.ranker.states import Interaction
from services.trainer.held_out.counters import NAMES
from services.trainer.held_out.curves import NUM_BINS, NUM_PORTIONS, bins_of, curves
from services.trainer.held_out.plots import figure_of, plots
from services.trainer.held_out.render import markdown
from services.trainer.held_out.report import compare
from services.trainer.held_out.scored import FROZEN, LIVE, Collector
from tests.learning import SPEC

SHOWN = (LIVE, FROZEN)
NUM_EVENTS, NUM_ITEMS = 1_000, 20


def collected(events: int = NUM_EVENTS):
    """Live says the rate of the event's own item, which half of the time is small; frozen says twice as much, and gets worse."""
    rng = np.random.default_rng(0)
    collector = Collector(SPEC, {f"u{user}" for user in range(20)}, {"0"})
    for number in range(events):
        rate = 0.02 if number % 2 else 0.4
        is_liked = rng.random() < rate
        live = np.full((NUM_ITEMS, 2), rate, np.float32)
        frozen = np.clip(2 * live + 0.1 * number / events, 0, 0.99).astype(np.float32)
        others = {name: np.full((NUM_ITEMS, 2), 0.5 if name == NAMES[0] else 0.3, np.float32) for name in NAMES}
        stars = 5.0 if is_liked else 1.0
        collector.add(Interaction(f"u{number % 40}", "0", "rating", stars, number), {LIVE: live, FROZEN: frozen} | others)
    return collector.scored()


def drawn(events=None) -> tuple[dict, dict]:
    scored = collected() if events is None else events
    tasks = compare(scored)
    return tasks, curves(scored, tasks, SHOWN)


def test_a_curve_has_the_mean_loss_of_each_portion_and_the_best_counter_comes_on_top() -> None:
    _, found = drawn()
    losses = found["like"]["log_loss"]
    # Two counters are equal, and better than the third.
    assert list(losses) == [LIVE, FROZEN, NAMES[1]]
    assert all(len(values) == NUM_PORTIONS for values in losses.values())
    rows = collected().tasks["like"]
    first_N = slice(0, NUM_EVENTS // NUM_PORTIONS)
    said_N, was_N = rows.scores[LIVE][first_N], rows.labels_N[first_N]
    assert losses[LIVE][0] == pytest.approx(-np.mean(np.log(np.where(was_N > 0, said_N, 1 - said_N))), abs=1e-6)
    assert np.mean(losses[FROZEN]) > np.mean(losses[LIVE])


def test_bins_of_calibration_hold_every_row_once_and_say_what_was_seen() -> None:
    _, found = drawn()
    rows = collected().tasks["like"]
    live = found["like"]["calibration"][LIVE]
    assert [one["said"] for one in live] == [pytest.approx(0.02, abs=1e-6), pytest.approx(0.4, abs=1e-6)]
    assert [one["labels"] for one in live] == [500, 500]
    assert sum(one["labels"] * one["seen"]["value"] for one in live) == pytest.approx(rows.labels_N.sum(), abs=0.01)
    # The truth is within the interval in 95 % of draws, and within twice its width in all but one of 10,000.
    assert all(abs(one["said"] - one["seen"]["value"]) < one["seen"]["high"] - one["seen"]["low"] for one in live)
    frozen = found["like"]["calibration"][FROZEN]
    assert sum(one["labels"] for one in frozen) == NUM_EVENTS
    assert frozen[-1]["seen"]["high"] < frozen[-1]["said"]


def test_bins_expect_equally_many_positives_and_equal_scores_share_one() -> None:
    scores_N = np.random.default_rng(0).beta(0.2, 20.0, 100_000)
    bin_N = bins_of(scores_N)
    expected = np.bincount(bin_N, scores_N, minlength=NUM_BINS)
    assert expected == pytest.approx(np.full(NUM_BINS, scores_N.sum() / NUM_BINS), rel=0.01)
    assert (np.diff(bin_N[np.argsort(scores_N)]) >= 0).all()
    assert len(set(bins_of(np.full(1_000, 0.1)).tolist())) == 1
    assert bins_of(np.zeros(5)).tolist() == [0] * 5
    assert bins_of(np.zeros(0)).tolist() == []
    # One row that expects more than all others together leaves them together at the lower end.
    assert set(bins_of(np.asarray([0.9, *[1e-6] * 100]))[1:].tolist()) == {0}


def test_a_figure_shows_the_numbers_of_the_report() -> None:
    tasks, found = drawn()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    over_time, calibration, gains = figure_of("like", tasks["like"], found["like"], LIVE).axes
    lines = {line.get_label(): line.get_ydata() for line in over_time.lines}
    assert {name: list(values) for name, values in lines.items()} == {
        name.replace("_", " "): values for name, values in found["like"]["log_loss"].items()
    }
    points = [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in calibration.lines]
    assert [(one["said"], one["seen"]["value"]) for one in found["like"]["calibration"][LIVE]] in points
    assert [label.get_text() for label in gains.get_yticklabels()] == [name.replace("_", " ") for name in tasks["like"]]
    assert tasks["like"]["all"]["live_minus"][FROZEN]["log_loss"]["value"] in gains.lines[0].get_xdata()


def test_the_files_are_drawings_that_the_page_shows_and_do_not_change() -> None:
    tasks, found = drawn()
    files = plots(tasks, found, LIVE)
    assert list(files) == ["report-interact.svg", "report-like.svg"]
    assert all(ElementTree.fromstring(text).tag.endswith("svg") for text in files.values())
    assert files == plots(tasks, found, LIVE)
    report = {
        "base": {"model": "m", "learned": "All.", "state_hash": "h", "rows": {}, "set_aside": {}},
        "seconds": {},
        "coverage": "c",
        "held_out": {"first_part": 3, "events": 4, "scored": 4, "users": 2, "new_users": 1, "from": "a", "to": "b"},
    }
    page = markdown(report | {"tasks": tasks})
    assert [line.rpartition("(")[2] for line in page.splitlines() if line.startswith("![")] == [f"{name})" for name in files]


@pytest.mark.parametrize("events", [1, 3, 12])
def test_few_events_are_drawn_too(events: int) -> None:
    tasks, found = drawn(collected(events))
    assert set(plots(tasks, found, LIVE)) == {"report-interact.svg", "report-like.svg"}


def test_a_task_without_labels_has_no_figure() -> None:
    tasks, found = drawn(Collector(SPEC, set(), set()).scored())
    assert (found, plots(tasks, found, LIVE)) == ({}, {})
