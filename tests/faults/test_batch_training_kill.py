"""`make train` under kill -9: what is trained in pieces is what is trained in one go."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from services.mesh.runner.environments import REPOSITORY_ROOT
from tests.learning import interactions
from tests.limits import seconds

pytestmark = [pytest.mark.ml, pytest.mark.deep]

START_MS = 1_700_000_000_000


def started(data: Path, out: Path, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "services.trainer.train", "--data", str(data), "--spec", "model_repo/ranker/feature_spec.yaml"]
    with log.open("a") as output:
        return subprocess.Popen(
            [*command, "--out", str(out), "--checkpoint-every", "64", "--scored-events", "100"],
            cwd=REPOSITORY_ROOT,
            stdout=output,
            stderr=output,
        )


def newest(checkpoints: Path) -> int:
    return max((int(found.parent.name) for found in checkpoints.glob("0*/manifest.json")), default=0)


def test_a_training_that_is_killed_twice_ends_at_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    rows = [(one.user_id, one.item_id, one.kind, one.value, START_MS + one.time_ms) for one in interactions(1_500, num_users=60)]
    data, log = tmp_path / "events.parquet", tmp_path / "log"
    pd.DataFrame(rows, columns=["user_id", "item_id", "kind", "value", "time"]).to_parquet(data)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for after in (2, 5):
        process, limit = started(data, killed, log), time.monotonic() + seconds(120)
        while newest(tmp_path / "killed.training") < after and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, log.read_text()
        assert not killed.exists()
    assert started(data, killed, log).wait(seconds(120)) == 0, log.read_text()
    assert started(data, whole, tmp_path / "other").wait(seconds(120)) == 0
    ours, theirs = (json.loads((out / "manifest.json").read_text())["metadata"]["state_hash"] for out in (killed, whole))
    assert ours == theirs
    assert log.read_text().count("going on from a checkpoint") == 2
    assert not (tmp_path / "killed.training").exists()
    reports = [json.loads((out / "report.json").read_text()) for out in (killed, whole)]
    assert reports[0]["tasks"] == reports[1]["tasks"]
