"""A search as runs on an MLflow server, beside those of trainings: one for the search, and one inside it for each trial."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from services.common.platform.mlflow_server import MAX_METRICS_PER_CALL, MAX_PARAMETER_CHARS, MAX_TAG_CHARS, MlflowServer
from services.trainer.held_out.report import ALL
from services.trainer.search.study import MEASURES, REASON
from services.trainer.training_run import EXPERIMENT


def record_search(
    tracking_uri: str, name: str, report: Mapping[str, Any], files: Mapping[str, str], *, began_ms: int, ended_ms: int
) -> str:
    """Write one finished search; return the id of its run.

    Args:
        tracking_uri: of the server.
        name: of the run: where its files are.
        report: as it stands in report.json.
        files: texts by name, which become artifacts.
        began_ms: when the search began, Unix milliseconds; ended_ms: when it ended.
    Raises:
        InvalidInput: MLflow will not take it.
        Unavailable: it does not answer.
    """
    server = MlflowServer(tracking_uri, EXPERIMENT)
    with server.speaking() as client:
        from mlflow.entities import Metric, Param, RunTag

        experiment = server.experiment_id(client)

        def written(called: str, params: Mapping[str, Any], metrics: Iterator[tuple[str, float]], tags: Mapping[str, str]) -> str:
            run = str(client.create_run(experiment, start_time=began_ms, run_name=called).info.run_id)
            client.log_batch(
                run,
                params=[Param(key, _text(value)[:MAX_PARAMETER_CHARS]) for key, value in params.items()],
                tags=[RunTag(key, value[:MAX_TAG_CHARS]) for key, value in tags.items()],
                synchronous=True,
            )
            found = [Metric(key, value, ended_ms, 0) for key, value in metrics]
            for first in range(0, len(found), MAX_METRICS_PER_CALL):
                client.log_batch(run, metrics=found[first : first + MAX_METRICS_PER_CALL], synchronous=True)
            return run

        winner = report["winner"]
        tags = {"tunemesh.schema_hash": winner["schema_hash"], "tunemesh.learned": winner["called"]}
        run_id = written(name, report["options"], _of_search(report), tags)
        for file_name, text in files.items():
            client.log_text(run_id, text, file_name)
        for row in report["trials"]:
            of_trial = {"mlflow.parentRunId": run_id, "tunemesh.trial": row["state"]}
            of_trial |= {"tunemesh.reason": str(row[REASON])} if REASON in row else {}
            trial = written(f"{name} trial {row['number']}", row["values"], _of_trial(row), of_trial)
            client.set_terminated(trial, "FAILED" if REASON in row else "FINISHED", ended_ms)
        client.set_terminated(run_id, "FINISHED", ended_ms)
    return run_id


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _of_search(report: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield TASK/MEASURE/CONTESTANT and the winner's gains on the last part."""
    for task, by_slice in report["test"].items():
        for contestant, own in by_slice.get(ALL, {}).get("contestants", {}).items():
            yield from ((f"{task}/{metric}/{contestant}", of["value"]) for metric, of in own.items() if of["value"] is not None)
        for other, gains in by_slice.get(ALL, {}).get("winner_minus", {}).items():
            yield from ((f"{task}/{metric}/winner_minus_{other}", of["value"]) for metric, of in gains.items() if of["value"] is not None)


def _of_trial(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    if row["value"] is not None:
        yield "relative", row["value"]
    for task, own in row.get(MEASURES, {}).items():
        yield from ((f"{task}/{metric}/validation", value) for metric, value in own.items() if value is not None)
