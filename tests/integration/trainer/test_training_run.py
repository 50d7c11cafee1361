"""`make train` and `make search` with MLFLOW_TRACKING_URI: runs on a real MLflow server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.mesh.runner import embedded
from services.trainer import train
from services.trainer.search.main import main as search
from tests.learning import interactions

pytestmark = [pytest.mark.integration, pytest.mark.ml]

SHIPPED = "model_repo/ranker/feature_spec.yaml"


def command(folder: Path, name: str, *options: str) -> list[str]:
    rows = [f"{one.user_id},{one.item_id},{one.kind},{one.value},{1_700_000_000 + one.time_ms // 1000}" for one in interactions(300)]
    data = folder / "events.csv"
    data.write_text("\n".join(["user_id,item_id,kind,value,time", *rows]))
    return ["--data", str(data), "--spec", SHIPPED, "--out", str(folder / name), *options]


def test_a_training_is_a_run_with_parameters_metrics_and_the_report(
    mlflow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    assert train.main(command(tmp_path, "base", "--epochs", "2")) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("recorded in MLflow"))
    run_id = line.rpartition(" ")[2]

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_url)
    run = client.get_run(run_id)
    report = json.loads((tmp_path / "base" / "report.json").read_text())
    assert (run.info.status, run.info.run_name) == ("FINISHED", str(tmp_path / "base"))
    assert run.info.start_time < run.info.end_time
    assert client.get_experiment(run.info.experiment_id).name == "tunemesh/trainer"
    assert (run.data.params["network.name"], run.data.params["epochs"], run.data.params["held_out"]) == ("dcn_din", "2", "0.1")
    assert run.data.tags["tunemesh.state_hash"] == report["base"]["state_hash"]
    assert run.data.tags["tunemesh.reads"] == "feedback:kind (feedback.v1), feedback:value (feedback.v1), item:categories (catalog.v1)"
    found = report["tasks"]["interact"]["all"]
    assert run.data.metrics["interact/auc/live"] == found["contestants"]["live"]["auc"]["value"]
    assert run.data.metrics["interact/auc/live_minus_items.low"] == found["live_minus"]["items"]["auc"]["low"]
    assert run.data.metrics["rows/user"] == 20
    losses = client.get_metric_history(run_id, "held_out_loss")
    assert [point.value for point in sorted(losses, key=lambda point: point.step)] == report["base"]["passes"]["held_out_losses"]
    stored = Path(client.download_artifacts(run_id, "report.json", str(tmp_path)))
    assert json.loads(stored.read_text()) == report
    drawn = {"report-interact.svg", "report-like.svg"}
    assert {file.path for file in client.list_artifacts(run_id)} == {"report.json", "report.md", *drawn}
    for name in drawn:
        own = (tmp_path / "base" / name).read_text()
        assert own.startswith("<?xml") and Path(client.download_artifacts(run_id, name, str(tmp_path))).read_text() == own


def test_a_server_that_is_down_costs_the_run_and_not_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:p1anted@127.0.0.1:{embedded.free_port()}")
    assert train.main(command(tmp_path, "base", "--held-out", "0")) == 0
    assert (tmp_path / "base" / "manifest.json").exists()
    said = capsys.readouterr()
    assert "not recorded: MLflow at http://***@127.0.0.1" in said.err
    assert "p1anted" not in said.out + said.err


def test_a_search_is_a_run_with_a_run_of_each_trial_inside(
    mlflow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    (tmp_path / "space.yaml").write_text("learning.dense_rate: {float: [0.001, 0.01]}\nnetwork: {choice: [dcn_din]}\n")
    assert search(command(tmp_path, "found", "--space", str(tmp_path / "space.yaml"), "--trials", "2", "--scored-events", "30")) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("recorded in MLflow"))
    run_id = line.rpartition(" ")[2]

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_url)
    run, report = client.get_run(run_id), json.loads((tmp_path / "found" / "report.json").read_text())
    assert (run.info.status, run.info.run_name, run.data.params["metric"]) == ("FINISHED", str(tmp_path / "found"), "log_loss")
    assert run.data.tags["tunemesh.schema_hash"] == report["winner"]["schema_hash"]
    assert run.data.metrics["interact/auc/start"] == report["test"]["interact"]["all"]["contestants"]["start"]["auc"]["value"]
    assert json.loads(Path(client.download_artifacts(run_id, "report.json", str(tmp_path))).read_text()) == report
    written = {path.name for path in (tmp_path / "found").iterdir() if path.suffix in (".json", ".md", ".svg", ".yaml")}
    assert {file.path for file in client.list_artifacts(run_id)} == written
    trials = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert sorted(float(one.data.params["learning.dense_rate"]) for one in trials) == pytest.approx(
        sorted(row["values"]["learning.dense_rate"] for row in report["trials"])
    )
    assert all(one.data.metrics["relative"] > 0 for one in trials) and {one.info.status for one in trials} == {"FINISHED"}
