"""`make search` on a real Ray cluster of this machine, with two processors: the same trials, and a worker that is killed costs none.

Ray is installed once, beside the environment, into build/tests: it is no part of the lock files.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from services.mesh.runner import embedded
from tests import limits
from tests.learning import interactions
from tests.run.plan import ROOT

pytestmark = [pytest.mark.ml, pytest.mark.deep]

PACKAGES = ("ray==2.60.0", "msgpack==1.2.4")
FOLDER = ROOT / "build" / "tests" / PACKAGES[0].replace("==", "-")
SPACE = "learning.dense_rate: {float: [0.0005, 0.05], log: true}\nnetwork.cross_layers: {int: [1, 2]}\n"
START_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Return the variables with which Ray is found."""
    if not (FOLDER / "ready").is_file():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(FOLDER)]
        subprocess.run([*pip, *PACKAGES], check=True, timeout=limits.seconds(600))
        (FOLDER / "ready").touch()
    path = os.pathsep.join([str(FOLDER), str(ROOT), str(ROOT / "protos" / "gen")])
    # A cluster asks for a token where a program of this user had one of its own (findings/ray_local_cluster_locks_others_out.sh).
    return os.environ | {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


@pytest.fixture(scope="module")
def address(environment: dict[str, str]) -> Iterator[str]:
    """Start a cluster of two processors; return its address."""
    port = embedded.free_port()
    script = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
    options = [f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2", "--include-dashboard=false", "--block"]
    # Sockets have short names: pytest's folders are too deep.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        command = [sys.executable, "-c", script, "start", "--head", *options, f"--temp-dir={folder}", "--object-store-memory=100000000"]
        log = Path(folder) / "start.log"
        with log.open("w") as output:
            head = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            limit = time.monotonic() + limits.seconds(120)
            while "Ray runtime started" not in log.read_text():
                assert head.poll() is None and time.monotonic() < limit, log.read_text()
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            family = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
            head.send_signal(signal.SIGTERM)
            for process in psutil.wait_procs(family, limits.seconds(20))[1]:
                process.kill()
            head.wait()


def files(folder: Path) -> None:
    rows = [(one.user_id, one.item_id, one.kind, one.value, START_MS + one.time_ms) for one in interactions(400)]
    pd.DataFrame(rows, columns=["user_id", "item_id", "kind", "value", "time"]).to_parquet(folder / "events.parquet")
    (folder / "space.yaml").write_text(SPACE)


def started(folder: Path, name: str, environment: dict[str, str], *options: str) -> subprocess.Popen:
    files = ["--data", folder / "events.parquet", "--spec", "model_repo/ranker/feature_spec.yaml", "--space", folder / "space.yaml"]
    command = [sys.executable, "-m", "services.trainer.search.main", *map(str, files), "--out", str(folder / name), "--scored-events", "60"]
    with (folder / f"{name}.log").open("w") as output:
        return subprocess.Popen([*command, "--pruner", "none", *options], cwd=ROOT, env=environment, stdout=output, stderr=output)


def searched(folder: Path, name: str, environment: dict[str, str], *options: str) -> dict[str, Any]:
    said = folder / f"{name}.log"
    assert started(folder, name, environment, *options).wait(limits.seconds(300)) == 0, said.read_text()
    return json.loads((folder / name / "report.json").read_text())


def outcomes(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    return sorted((row["state"], json.dumps(row["values"]), row["value"], json.dumps(row.get("measures"))) for row in report["trials"])


def test_trials_on_ray_are_worth_what_they_are_in_one_process(tmp_path: Path, environment: dict[str, str], address: str) -> None:
    files(tmp_path)
    near = searched(tmp_path, "near", environment, "--trials", "4")
    far = searched(tmp_path, "far", environment | {"RAY_ADDRESS": address}, "--trials", "4")
    assert outcomes(far) == outcomes(near)
    assert far["test"] == near["test"] and far["winner"]["values"] == near["winner"]["values"]
    said = (tmp_path / "far.log").read_text()
    assert f"Ray at {address}: 2 workers, 2 processors" in said
    assert said.count("\ntrial ") == 4


def test_a_worker_that_is_killed_costs_no_trial(tmp_path: Path, environment: dict[str, str], address: str) -> None:
    files(tmp_path)
    process = started(tmp_path, "killed", environment | {"RAY_ADDRESS": address}, "--trials", "5")
    log = tmp_path / "killed.log"
    limit = time.monotonic() + limits.seconds(240)
    while "\ntrial " not in log.read_text():
        assert process.poll() is None and time.monotonic() < limit, log.read_text()
        time.sleep(0.01)
    workers = [one for one in psutil.process_iter(["cmdline"]) if "ray::work_on_ray" in " ".join(one.info["cmdline"] or [])]
    assert workers, "no worker runs trials"
    workers[0].kill()
    assert process.wait(limits.seconds(300)) == 0, log.read_text()
    report = json.loads((tmp_path / "killed" / "report.json").read_text())
    assert report["counts"]["complete"] == 5, report["trials"]
    assert "on Ray ended with WorkerCrashedError" in log.read_text()
