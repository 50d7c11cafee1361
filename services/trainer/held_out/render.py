"""The held-out report for people: a short table for the terminal, and Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from services.trainer.held_out.counters import NAMES as BASELINES
from services.trainer.held_out.report import ALL, COMPARED, METRICS, best_baseline
from services.trainer.held_out.scored import FROZEN, LIVE

HEADINGS = {"auc": "AUC", "gauc": "GAUC", "ndcg10": "NDCG@10", "log_loss": "log-loss", "calibration": "calibration"}
_NOTES = """
*live* learns each held-out event after it was scored, *frozen* stays what it was before the first of them and sees the same features.
*items*, *recent_items* and *users_and_items* are counters: the rate of the item so far, of late (decayed), and of item and user together;
they are up to date at once. Intervals are 95 %, by user; {coverage}. Where there is none, too few users were seen. What an event shows is
the chosen item and up to 99 others of the catalogue that the user has not chosen yet, new items among them; of a log of impressions, the
item that the row names.

AUC and GAUC (the mean of the users' own AUCs) rank what has a label: all items shown where negatives are drawn, else what was answered, and
seen without an answer where the spec reads impressions. NDCG@10 is that of the chosen item among those drawn, else of each user's rows as
one list. Log-loss is natural; calibration is the sum of predictions over the number of positives, 1 is right. Of a log of impressions,
live and frozen know where each item stood, if the spec corrects for that (`position_bias`); counters do not, and a service ranks all items
as if they stood first.
"""


def short(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table: by task and measure, over all scored events."""
    yield from _features(report)
    yield summary(report)
    rows = [("task", "measure", "live", "frozen", "best counter", "live - frozen", "live - counter")]
    for task, by_slice in report["tasks"].items():
        if ALL not in by_slice:
            rows.append((task, "no labels", "", "", "", "", ""))
            continue
        rows += [(task, *_cells(by_slice[ALL], metric)) for metric in METRICS]
    yield from table(rows)


def table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield rows as lines whose columns stand below each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def summary(report: Mapping[str, Any]) -> str:
    """Return in a line what was held out."""
    part = report["held_out"]
    scored = "all scored" if part["scored"] == part["events"] else f"{part['scored']} scored, those of some users"
    return (
        f"held out: the last {part['events']} of {part['events'] + part['first_part']} events ({part['from']} to {part['to']}), {scored}; "
        f"{part['users']} users, {part['new_users']} of them new"
    )


def _features(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the declared features read, and how often it was known; nothing when none is declared."""
    if known := report["base"].get("features", {}).get("known"):
        shares = ", ".join(f"{name} (known of {share:.1%} of the events)" for name, share in known.items())
        yield f"declared features: {len(report['base']['features']['columns'])} columns of {shares}"


def _cells(found: Mapping[str, Any], metric: str) -> tuple[str, ...]:
    contestants, gains = found["contestants"], found[f"{LIVE}_minus"]
    baseline = best_baseline(contestants, metric, dict.fromkeys(BASELINES)) if metric in COMPARED else None
    return (
        HEADINGS[metric],
        measure_text(contestants[LIVE][metric]),
        measure_text(contestants[FROZEN][metric]),
        f"{measure_text(contestants[baseline][metric])} {baseline}" if baseline else "-",
        gain_text(gains[FROZEN][metric]) if metric in COMPARED else "-",
        gain_text(gains[baseline][metric]) if baseline else "-",
    )


def measure_text(stated: Mapping[str, float | None]) -> str:
    """Return a measure as text."""
    return "-" if stated["value"] is None else f"{stated['value']:.4f}"


def gain_text(stated: Mapping[str, float | None]) -> str:
    """Return a gain and its interval as text."""
    if stated["value"] is None:
        return "-"
    return f"{stated['value']:+.4f}" + _interval(stated, "+.4f")


def _interval(stated: Mapping[str, float | None], form: str) -> str:
    return "" if stated["low"] is None else f" [{stated['low']:{form}}, {stated['high']:{form}}]"


def markdown(report: Mapping[str, Any]) -> str:
    """Return the whole report as Markdown."""
    lines = [f"# Held-out report of {report['base']['model']}", "", summary(report) + ".", "", report["base"]["learned"], ""]
    lines += [line for feature in _features(report) for line in (feature.capitalize() + ".", "")]
    lines += measures(report["tasks"], LIVE)
    lines += ["## What the numbers are", _NOTES.format(coverage=report["coverage"]), "## Time and size", ""]
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in report["seconds"].items())
    rows = ", ".join(f"{name} {value}" for name, value in report["base"]["rows"].items())
    lines += [f"{seconds}. Rows: {rows}. State hash `{report['base']['state_hash']}`.", ""]
    lines += [f"- set aside: {count} events whose {reason}" for reason, count in report["base"]["set_aside"].items()]
    return "\n".join(lines).rstrip() + "\n"


def plot_name(task: str) -> str:
    """Return the name of the file, beside the page, that a task's figure stands in."""
    return f"report-{task}.svg"


def pictures(tasks: Mapping[str, Any]) -> Iterator[str]:
    """Yield the Markdown that shows the figures of tasks that have labels."""
    for task, by_slice in tasks.items():
        if ALL in by_slice:
            yield from (f"![{task}: log-loss as the held-out part went on, calibration, gains by slice]({plot_name(task)})", "")


def measures(tasks: Mapping[str, Any], subject: str) -> Iterator[str]:
    """Yield the Markdown of everyone's measures by task and slice, and of the subject's gains."""
    for task, by_slice in tasks.items():
        yield from (f"## {task}", "", *pictures({task: by_slice}))
        for name, found in by_slice.items():
            yield from _slice(name, found, subject)
        if not by_slice:
            yield from ("No held-out event has a label of this task.", "")


def _slice(name: str, found: Mapping[str, Any], subject: str) -> Iterator[str]:
    yield f"### {name.replace('_', ' ')}"
    yield ""
    yield f"{found['events']} events, {found['users']} users, {found['labels']} labels, {found['positives']} of them positive."
    yield ""
    yield f"| | {' | '.join(HEADINGS[metric] for metric in METRICS)} |"
    yield f"|---|{'---:|' * len(METRICS)}"
    for contestant, own in found["contestants"].items():
        yield f"| {contestant} | " + " | ".join(measure_text(own[metric]) + _interval(own[metric], ".4f") for metric in METRICS) + " |"
    for other, gains in found[f"{subject}_minus"].items():
        cells = [gain_text(gains[metric]) if metric in COMPARED else "" for metric in METRICS]
        yield f"| {subject} − {other} | " + " | ".join(cells) + " |"
    yield ""
