"""A batch training as a run on an MLflow server: parameters, metrics, and the report as artifacts. Written when the training is done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from services.common.platform.mlflow_server import MAX_METRICS_PER_CALL, MAX_PARAMETER_CHARS, MAX_TAG_CHARS, MlflowServer
from services.trainer.held_out.report import ALL
from services.trainer.held_out.scored import LIVE

EXPERIMENT = "tunemesh/trainer"


def record_run(
    tracking_uri: str, name: str, report: Mapping[str, Any], files: Mapping[str, str], *, began_ms: int, ended_ms: int, subject: str = LIVE
) -> str:
    """Write one finished training; return the run's id.

    Args:
        tracking_uri: of the server.
        name: of the run: where the base is.
        report: "base" and "seconds"; with a held-out part also "held_out", "tasks" and "coverage".
        files: texts by name, which become artifacts.
        began_ms: when the training began, Unix milliseconds; ended_ms: when it ended.
        subject: whose gains over the others the report has.
    Raises:
        InvalidInput: MLflow will not take it.
        Unavailable: it does not answer.
    """
    server = MlflowServer(tracking_uri, EXPERIMENT)
    base = report["base"]
    with server.speaking() as client:
        from mlflow.entities import Metric, Param, RunTag

        run_id = str(client.create_run(server.experiment_id(client), start_time=began_ms, run_name=name).info.run_id)
        params = [Param(key, value[:MAX_PARAMETER_CHARS]) for key, value in _parameters(base).items()]
        tags = [RunTag(f"tunemesh.{key}", str(base[key])[:MAX_TAG_CHARS]) for key in ("state_hash", "schema_hash", "learned")]
        tags.append(RunTag("tunemesh.reads", ", ".join(base["reads"])[:MAX_TAG_CHARS]))
        client.log_batch(run_id, params=params, tags=tags, synchronous=True)
        metrics = [Metric(key, value, ended_ms, 0) for key, value in _metrics(report, subject)]
        losses = base["passes"]["held_out_losses"]
        metrics += [Metric("held_out_loss", loss, ended_ms, number + 1) for number, loss in enumerate(losses)]
        for start in range(0, len(metrics), MAX_METRICS_PER_CALL):
            client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS_PER_CALL], synchronous=True)
        for file_name, text in files.items():
            client.log_text(run_id, text, file_name)
        client.set_terminated(run_id, "FINISHED", ended_ms)
    return run_id


def _parameters(base: Mapping[str, Any]) -> dict[str, str]:
    network = {f"network.{key}": json.dumps(value) if not isinstance(value, str) else value for key, value in base["network"].items()}
    return {"model": base["model"]} | network | {key: str(value) for key, value in base["options"].items()}


def _metrics(report: Mapping[str, Any], subject: str) -> Iterator[tuple[str, float]]:
    """Yield (TASK[.SLICE]/MEASURE/CONTESTANT, value) of all that could be told, and the subject's gains with their intervals."""
    base = report["base"]
    yield "events", float(base["events"])
    yield "best_pass", float(base["passes"]["best"])
    for name, count in base["rows"].items():
        yield f"rows/{name}", float(count)
    for name, seconds in report["seconds"].items():
        yield f"seconds/{name}", float(seconds)
    for task, by_slice in report.get("tasks", {}).items():
        for name, found in by_slice.items():
            prefix = task if name == ALL else f"{task}.{name}"
            for contestant, own in found["contestants"].items():
                for metric, stated in own.items():
                    if stated["value"] is not None:
                        yield f"{prefix}/{metric}/{contestant}", stated["value"]
            for other, gains in found[f"{subject}_minus"].items():
                for metric, stated in gains.items():
                    for end, value in stated.items():
                        if value is not None:
                            yield f"{prefix}/{metric}/{subject}_minus_{other}{'' if end == 'value' else f'.{end}'}", value
