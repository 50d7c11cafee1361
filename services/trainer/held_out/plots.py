"""The held-out report drawn, a figure for each task. Draws nothing that report.json does not hold."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from services.trainer.held_out.curves import CALIBRATION, LOG_LOSS, NUM_PORTIONS
from services.trainer.held_out.render import plot_name

_WIDE = 20.0
"""Probabilities that differ by more than this factor are drawn on logarithmic scales."""
_MARGIN = 1.25
_PLACES = {"left": 0.05, "right": 0.985, "bottom": 0.12, "top": 0.86, "wspace": 0.3}


def plots(tasks: Mapping[str, Any], curves: Mapping[str, Any], subject: str) -> dict[str, str]:
    """Return by file name the figures as SVG; the same numbers give the same text.

    Args:
        tasks: what `report.compare` says, with this subject.
        curves: what `curves.curves` says.
        subject: the contestant whose gains over the others are drawn.
    """
    return {plot_name(task): _svg(figure_of(task, tasks[task], of, subject)) for task, of in curves.items()}


def figure_of(task: str, by_slice: Mapping[str, Any], of: Mapping[str, Any], subject: str) -> Figure:
    """Return a task's figure: log-loss over the held-out part, calibration, and the subject's gains in log-loss by slice."""
    figure = Figure(figsize=(14, 4.6))
    over_time, calibration, gains = figure.subplots(1, 3, gridspec_kw=_PLACES)
    figure.suptitle(task)
    _draw_over_time(over_time, of[LOG_LOSS])
    _draw_calibration(calibration, of[CALIBRATION])
    _draw_gains(gains, by_slice, subject, [name for name in of[LOG_LOSS] if name != subject])
    return figure


def _draw_over_time(axes: Axes, of: Mapping[str, Sequence[float | None]]) -> None:
    for name, losses in of.items():
        points = [((number + 0.5) / NUM_PORTIONS * 100, loss) for number, loss in enumerate(losses) if loss is not None]
        axes.plot([at for at, _ in points], [loss for _, loss in points], marker=".", label=_shown(name))
    axes.set_title("log-loss as the held-out part went on (less is better)", fontsize=10)
    axes.set_xlabel("scored events, %")
    axes.set_ylabel("log-loss")
    _finish(axes)


def _draw_calibration(axes: Axes, of: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    found = [one for bins in of.values() for one in bins]
    positive = [value for one in found for value in (one["said"], one["seen"]["value"]) if value]
    least, most = (min(positive) / _MARGIN, max(positive) * _MARGIN) if positive else (0.0, 1.0)
    if positive and most / least > _WIDE:
        axes.set_xscale("log")
        axes.set_yscale("log")
    else:
        least = 0.0
    axes.plot([least, most], [least, most], color="gray", linestyle="--", linewidth=1, label="right")
    for index, (name, bins) in enumerate(of.items()):
        said, seen = [one["said"] for one in bins], [one["seen"] for one in bins]
        rates = [one["value"] for one in seen]
        axes.errorbar(said, rates, yerr=_errors(seen), marker=".", color=f"C{index}", capsize=2, label=_shown(name))
    axes.set_xlim(least, most)
    axes.set_ylim(least, most)
    axes.set_title("calibration: ten bins that expect as many positives each", fontsize=10)
    axes.set_xlabel("probability that was said")
    axes.set_ylabel("rate that was seen")
    _finish(axes)


def _draw_gains(axes: Axes, by_slice: Mapping[str, Any], subject: str, others: Sequence[str]) -> None:
    for index, other in enumerate(others):
        gains = [found[f"{subject}_minus"][other][LOG_LOSS] for found in by_slice.values()]
        drawn = [(row, gain) for row, gain in enumerate(gains) if gain["value"] is not None]
        places = [row + (index - (len(others) - 1) / 2) * 0.6 / len(others) for row, _ in drawn]
        told = [gain for _, gain in drawn]
        values = [gain["value"] for gain in told]
        # The subject has the first colour in the other panels, and is what all these are compared with.
        colour = f"C{index + 1}"
        axes.errorbar(values, places, xerr=_errors(told), fmt="o", markersize=4, color=colour, capsize=2, label=_shown(other))
    axes.axvline(0.0, color="gray", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(by_slice)), labels=[_shown(name) for name in by_slice])
    axes.invert_yaxis()
    axes.set_title(f"log-loss of {_shown(subject)} minus that of others (left of 0: better)", fontsize=10)
    axes.set_xlabel("difference, 95 % interval by user")
    _finish(axes)


def _errors(stated: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Return how far intervals reach below and above their values; 0 where there is none."""
    below = [0.0 if one["low"] is None else max(one["value"] - one["low"], 0.0) for one in stated]
    above = [0.0 if one["high"] is None else max(one["high"] - one["value"], 0.0) for one in stated]
    return below, above


def _finish(axes: Axes) -> None:
    axes.grid(visible=True, alpha=0.25)
    axes.legend(fontsize=8)


def _shown(name: str) -> str:
    return name.replace("_", " ")


def _svg(figure: Figure) -> str:
    out = io.BytesIO()
    # Without a salt the names inside the file are drawn at random, and its date is today's.
    with matplotlib.rc_context({"svg.hashsalt": "tunemesh"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue().decode()
