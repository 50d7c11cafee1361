"""The registry against a real MLflow server."""

from __future__ import annotations

import uuid

import pytest

from services.common.language.adapter_name import AdapterName
from services.common.platform.errors import InvalidInput, NotFound, Unavailable
from services.mesh.runner import embedded
from services.tuner.job import Step
from services.tuner.mirror import RunRecord
from services.tuner.mlflow_registry import MlflowRegistry

pytestmark = [pytest.mark.integration, pytest.mark.ml]

# Of this run of the tests: the server is shared.
BASE = f"Base{uuid.uuid4().hex[:8]}"
ONE, TWO = AdapterName(BASE, "helpdesk", 1), AdapterName(BASE, "helpdesk", 2)


def test_runs_versions_and_the_alias_are_as_they_were_written(mlflow_url):
    registry = MlflowRegistry(mlflow_url)
    assert registry.find_run(ONE, "") == ""
    run_id = registry.begin_run(ONE, {"rank": "16", "dataset_hash": "sha256:d"})
    assert registry.find_run(ONE, "") == registry.find_run(ONE, run_id) == registry.find_run(ONE, "0" * 32) == run_id
    version = registry.put_version(ONE, run_id, {"tunemesh.verdict": "none yet"})
    assert registry.put_version(ONE, run_id, {"tunemesh.verdict": "refused", "tunemesh.refusals": "x" * 6_000}) == version
    second = registry.put_version(TWO, registry.begin_run(TWO, {}), {"tunemesh.verdict": "accepted"})
    steps = [Step(step=number, loss=1.0 / number, gradient_norm=1.0, seconds=0.1) for number in (1, 2)]
    record = RunRecord(
        ended_at_ms=1_764_000_000_000,
        metrics={"task.candidate": 0.9, "task.live": float("nan")},
        losses=steps,
        tags={"tunemesh.verdict": "refused"},
    )
    registry.end_run(run_id, record)
    registry.end_run(run_id, record)
    registry.point_alias(BASE, "helpdesk", second)

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_url, registry_uri=mlflow_url)
    run = client.get_run(run_id)
    assert (run.info.status, run.data.params["rank"], run.data.tags["tunemesh.adapter"]) == ("FINISHED", "16", str(ONE))
    assert run.data.metrics["task.candidate"] == 0.9
    assert "task.live" not in run.data.metrics
    assert sorted((point.step, point.value) for point in client.get_metric_history(run_id, "loss")) == [(1, 1.0), (2, 0.5)]
    assert client.get_model_version(f"{BASE}--helpdesk", version).tags["tunemesh.verdict"] == "refused"
    assert client.get_model_version_by_alias(f"{BASE}--helpdesk", "production").version == second
    registry.point_alias(BASE, "helpdesk", version)
    assert client.get_model_version_by_alias(f"{BASE}--helpdesk", "production").version == version
    registry.point_alias(BASE, "helpdesk", "")
    assert client.get_registered_model(f"{BASE}--helpdesk").aliases == {}


def test_the_run_of_a_failed_tune_says_so(mlflow_url):
    registry = MlflowRegistry(mlflow_url)
    name = AdapterName(BASE, "other", 1)
    run_id = registry.begin_run(name, {})
    registry.end_run(run_id, RunRecord(ended_at_ms=0, metrics={}, losses=(), tags={}, failure="out of room"))
    assert registry.find_run(name, "") == ""

    from mlflow import MlflowClient

    run = MlflowClient(tracking_uri=mlflow_url).get_run(run_id)
    assert (run.info.status, run.data.tags["tunemesh.failure"]) == ("FAILED", "out of room")


def test_what_the_server_will_not_take_is_no_outage(mlflow_url):
    registry = MlflowRegistry(mlflow_url)
    with pytest.raises(NotFound):
        registry.end_run("0" * 32, RunRecord(ended_at_ms=0, metrics={}, losses=(), tags={}))
    with pytest.raises(InvalidInput):
        registry.begin_run(ONE, {"a name with = in it": "1"})


def test_a_server_that_is_down_is_unavailable():
    with pytest.raises(Unavailable, match="MLflow at"):
        MlflowRegistry(f"http://127.0.0.1:{embedded.free_port()}").find_run(ONE, "")


def test_a_server_that_is_down_is_told_without_its_password():
    with pytest.raises(Unavailable, match=r"MLflow at http://\*\*\*@127") as down:
        MlflowRegistry(f"http://user:p1anted@127.0.0.1:{embedded.free_port()}").find_run(ONE, "")
    assert "p1anted" not in str(down.value)
