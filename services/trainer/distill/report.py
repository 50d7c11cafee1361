"""What teaching was worth, for people: a table for the terminal, and Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from services.trainer.distill.lessons import ALONE, STUDENT, TEACHER
from services.trainer.held_out.render import HEADINGS, gain_text, measure_text, measures, summary, table
from services.trainer.held_out.report import ALL, COMPARED, METRICS

_MEANINGS = {
    "better": "teaching helped: the interval of the difference does not hold 0",
    "worse": "teaching harmed: the student without a teacher is better; use `make train`",
    "no different": "no gain is shown: the interval of the difference holds 0; `make train` makes as good a base without a teacher",
    "not told": "cannot be told: too few users, or no labels",
}
_NOTES = """
*student* learned the labels and the teacher's answers, *alone* is the same network and spec without a teacher, *teacher* answered each
sample before it learned it. All learned the first part once, and each held-out event after it was scored, as they would in service: there
without lessons. *student_frozen* stays what it was before the first of them. Counters are up to date at once. Intervals are 95 %, by user;
{coverage}. What they do not contain: another seed.
"""


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines for the terminal."""
    yield summary(report)
    rows = [("task", "measure", STUDENT, ALONE, TEACHER, f"{STUDENT} - {ALONE}", f"{STUDENT} - {TEACHER}")]
    for task, by_slice in report["tasks"].items():
        if ALL not in by_slice:
            rows.append((task, "no labels", *[""] * 5))
            continue
        rows += [(task, *_cells(by_slice[ALL], metric)) for metric in METRICS]
    yield from table(rows)
    yield _costs(report["lessons"])
    for task, said in report["verdict"].items():
        yield f"{task}, log-loss: {_MEANINGS[said['log_loss']]}"


def _cells(found: Mapping[str, Any], metric: str) -> tuple[str, ...]:
    contestants, gains = found["contestants"], found[f"{STUDENT}_minus"]
    values = (measure_text(contestants[name][metric]) for name in (STUDENT, ALONE, TEACHER))
    return HEADINGS[metric], *values, *(gain_text(gains[name][metric]) if metric in COMPARED else "-" for name in (ALONE, TEACHER))


def _costs(lessons: Mapping[str, Any]) -> str:
    parts = [f"{name} {lessons[name]['ms']:.2f} ms, {lessons[name]['weights']:,} weights" for name in (STUDENT, TEACHER)]
    return f"to score {lessons['items']} items: {'; '.join(parts)} (of the network; rows and features come on top)"


def markdown(report: Mapping[str, Any]) -> str:
    """Return the whole report as Markdown."""
    lessons = report["lessons"]
    page = [f"# What a teacher was worth to {report['base']['model']}", "", summary(report) + ".", "", report["base"]["learned"], ""]
    page += [f"Taught by {lessons[TEACHER]['spec']}; a lesson weighs {lessons['weight']:g} times as much as a label.", ""]
    page += [f"Processor time {_costs(lessons)}.", ""]
    page += [f"- {task}, log-loss: {_MEANINGS[said['log_loss']]}" for task, said in report["verdict"].items()]
    page += ["", *measures(report["tasks"], STUDENT), "## What the numbers are", _NOTES.format(coverage=report["coverage"])]
    page += [f"State hash `{report['base']['state_hash']}`."]
    return "\n".join(page).rstrip() + "\n"
