"""What a search found: as plain data for JSON, as lines for people, and the spec that won as a file of its own. Pure, but for `write`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState

from services.common.platform.errors import ConfigurationError
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.network_spec import OwnNetworkSpec
from services.trainer.held_out.evaluation import report_files
from services.trainer.held_out.render import pictures, table
from services.trainer.held_out.report import ALL, COMPARED, METRICS
from services.trainer.search.space import Space
from services.trainer.search.study import IS_START, LOSSES, MEASURES, REASON, SAME_AS, SECONDS, SIZE, Study

WINNER, START = "winner", "start"
SPEC_NAME = "best_spec.yaml"
_SHOWN_TRIALS = 10
_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "ended early", TrialState.FAIL: "failed"}
_MINUS = f"{WINNER}_minus"
_MEANINGS = {
    "better": "the search gained: the interval of the difference does not hold 0",
    "worse": "the search lost: what won on the validation part is worse here; keep the spec you have",
    "no different": "no gain is shown: the interval of the difference holds 0",
    "not told": "cannot be told: too few users, or no labels",
}


def trial_rows(study: Study) -> list[dict[str, Any]]:
    """Return what is known of each trial, in the order in which they began; the start is none of them."""
    return [_row(study, trial) for trial in study.trials() if not trial.user_attrs.get(IS_START)]


def _row(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    noted = trial.user_attrs
    # A trial that ended early has a value, too: its last portion's (findings/optuna_pruned_trial_has_a_value.sh).
    value = trial.value if trial.state == TrialState.COMPLETE else None
    row = {
        "number": trial.number,
        "state": _STATES[trial.state],
        "values": study.values_of(trial),
        "value": None if value is None else round(value, 6),
        "portions": len(noted.get(LOSSES, ())),
    }
    return row | {name: noted[name] for name in (MEASURES, SIZE, SECONDS, REASON, SAME_AS) if name in noted}


def failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the reasons why trials failed, each with how many there were, the most frequent first."""
    reasons = [str(row[REASON]) for row in rows if REASON in row]
    counted = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    return [f"{count} of {len(rows)} trials: {reason}" for reason, count in sorted(counted.items(), key=lambda one: -one[1])]


def changed_values(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return by key the values that the winner has and the start has not."""
    start = space.start_values() or {}
    return {key: value for key, value in values.items() if key not in start or start[key] != value}


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines for the terminal."""
    counts, trials = report["counts"], report["trials"]
    yield f"{len(trials)} trials: {', '.join(f'{count} {state}' for state, count in counts.items())}; {report['ended']}"
    best = sorted((row for row in trials if row["value"] is not None), key=lambda row: (row["value"], row["number"]))[:_SHOWN_TRIALS]
    yield f"validation, {report['metric']} relative to the spec started from (1 is as good, less is better):"
    yield from _table([("trial", "relative", "network size", "values"), *(_cells(row) for row in best)])
    if report["importances"]:
        yield "share of the differences between trials: " + ", ".join(f"{key} {share:.0%}" for key, share in report["importances"].items())
    for reason in failures(trials):
        yield f"failed: {reason}"
    yield f"winner: {report['winner']['called']}"
    yield f"on the last {report['events']['test']} events, which no trial has seen; both learned the {report['events']['first']} before:"
    rows = [("task", "measure", "winner", "start", "winner - start")]
    for task, by_slice in report["test"].items():
        rows += [(task, metric, *_compared(by_slice[ALL], metric)) for metric in METRICS] if ALL in by_slice else []
    yield from _table(rows)
    yield from _verdicts(report)


def _verdicts(report: Mapping[str, Any]) -> Iterator[str]:
    if report["winner"]["trial"] is None:
        yield "the search gained nothing: no trial was better on the validation part than the spec it started from"
        return
    metric = report["metric"]
    for task, said in report["verdict"].items():
        others = [f"{how} by {', '.join(by)}" for how in ("better", "worse") if (by := [m for m in said if said[m] == how and m != metric])]
        yield f"{task}, {metric}: {_MEANINGS[said[metric]]}" + (f" ({'; '.join(others)})" if others else "")


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return str(row["number"]), f"{row['value']:.4f}", str(row.get(SIZE, "-")), shown(row["values"])


def shown(values: Mapping[str, Any]) -> str:
    """Return values of keys in a line."""
    return ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {json.dumps(value)}" for key, value in values.items())


def _compared(found: Mapping[str, Any], metric: str) -> tuple[str, ...]:
    contestants = found["contestants"]
    gain = found[_MINUS][START][metric] if metric in COMPARED else {"value": None}
    values = tuple(_number(contestants[who][metric]["value"], ".4f") for who in (WINNER, START))
    interval = f" [{gain['low']:+.4f}, {gain['high']:+.4f}]" if gain.get("low") is not None else ""
    return (*values, _number(gain["value"], "+.4f") + interval)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    return (f"  {line}" for line in table(rows))


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown: the terminal's lines, and every trial."""
    rows = [f"| {row['number']} | {row['state']} | {_number(row['value'], '.4f')} | {shown(row['values'])} |" for row in report["trials"]]
    text = ["# Search", "", "```", *lines(report), "```", "", *pictures(report["test"])]
    text += ["| trial | state | relative | values |", "|---|---|---:|---|", *rows]
    return "\n".join(text) + "\n"


def spec_text(space: Space, values: Mapping[str, Any], note: str) -> str:
    """Return the file of the spec with these values; what is read from it is the spec that the trial had.

    Raises:
        ConfigurationError: it would be read as another spec.
    """
    document = space.changed(values)
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=140)
    if FeatureSpec.parse(yaml.safe_load(text), source=space.start.source) != space.spec(values):
        raise ConfigurationError(f"{SPEC_NAME}: would be read as another spec; report this")
    beside = Path(space.start.source)
    own = f"# Its network is looked for beside the spec: copy this file to {beside.parent}.\n" if _has_own_network(space) else ""
    return f"# {note}\n{own}{text}"


def _has_own_network(space: Space) -> bool:
    return isinstance(space.start.network, OwnNetworkSpec)


def files_of(report: Mapping[str, Any]) -> dict[str, str]:
    """Return by name the files of a report: JSON, Markdown, and the figures that it shows."""
    return report_files(report, markdown(report), report["test"], WINNER)


def write(out: Path, files: Mapping[str, str]) -> None:
    """Write the files of a search, by name.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    for name, content in files.items():
        try:
            (out / name).write_text(content, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"{out / name}: cannot be written ({error.strerror})") from error
