"""`make search` under kill -9: what was finished is not repeated, and what is found is what an uninterrupted search finds."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from services.mesh.runner.environments import REPOSITORY_ROOT
from tests.learning import interactions
from tests.limits import seconds

pytestmark = [pytest.mark.ml, pytest.mark.deep]

START_MS = 1_700_000_000_000
SPACE = (
    "learning.dense_rate: {float: [0.0005, 0.05], log: true}\nnetwork: {choice: [dcn_din, deepfm]}\nnetwork.cross_layers: {int: [1, 2]}\n"
)


def started(folder: Path, log: Path, out: str, *options: str) -> subprocess.Popen:
    files = ["--data", folder / "events.parquet", "--spec", "model_repo/ranker/feature_spec.yaml", "--space", folder / "space.yaml"]
    command = [sys.executable, "-m", "services.trainer.search.main", *map(str, files), "--out", str(folder / out), "--scored-events", "60"]
    with log.open("a") as output:
        return subprocess.Popen([*command, *options], cwd=REPOSITORY_ROOT, stdout=output, stderr=output)


def wait_for(text: str, log: Path, process: subprocess.Popen) -> None:
    limit = time.monotonic() + seconds(120)
    while text not in log.read_text() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.002)
    assert text in log.read_text(), log.read_text()


def files(folder: Path) -> None:
    rows = [(one.user_id, one.item_id, one.kind, one.value, START_MS + one.time_ms) for one in interactions(400)]
    pd.DataFrame(rows, columns=["user_id", "item_id", "kind", "value", "time"]).to_parquet(folder / "events.parquet")
    (folder / "space.yaml").write_text(SPACE)


def outcomes(folder: Path) -> tuple[Any, ...]:
    report = json.loads((folder / "report.json").read_text())
    trials = [(row["state"], row["values"], row["value"], row.get("measures")) for row in report["trials"]]
    return trials, report["test"], report["verdict"], report["winner"]["values"], (folder / "best_spec.yaml").read_text().partition("\n")[2]


def test_a_search_that_is_killed_twice_ends_as_one_that_was_not(tmp_path: Path) -> None:
    files(tmp_path)
    log = tmp_path / "log"
    log.touch()
    for after in ("trial 1: ", "trial 3: "):
        process = started(tmp_path, log, "killed", "--trials", "5")
        wait_for(after, log, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, log.read_text()
    assert started(tmp_path, log, "killed", "--trials", "5").wait(seconds(240)) == 0, log.read_text()
    assert started(tmp_path, tmp_path / "other", "whole", "--trials", "5").wait(seconds(240)) == 0, (tmp_path / "other").read_text()
    assert outcomes(tmp_path / "killed") == outcomes(tmp_path / "whole")
    said = log.read_text()
    assert said.count("the spec started from: 320 events learned") == said.count("\ntrial 1: ") == 1


def test_processes_share_the_trials_and_one_that_is_killed_costs_none(tmp_path: Path) -> None:
    files(tmp_path)
    log = tmp_path / "log"
    log.touch()
    process = started(tmp_path, log, "out", "--trials", "5", "--jobs", "2", "--pruner", "none")
    wait_for("\ntrial ", log, process)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 2
    subprocess.run(["kill", "-9", str(workers[0])], check=True)
    assert process.wait(seconds(300)) == 0, log.read_text()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["counts"]["complete"] == 5, report["trials"]
    assert "SIGKILL" in log.read_text()
