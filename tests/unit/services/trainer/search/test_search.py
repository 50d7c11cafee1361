"""The command on real learners: its files, what it refuses, and events of the last part that decide nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.learner import Learner
from services.trainer.search.main import main
from tests.learning import interactions
from tests.small_batches import shrink

pytestmark = pytest.mark.ml

SHIPPED = "model_repo/ranker/feature_spec.yaml"
START_MS = 1_700_000_000_000
SPACE = "learning.dense_rate: {float: [0.0005, 0.05], log: true}\nnetwork.cross_layers: {int: [1, 2]}\n"


def frame() -> pd.DataFrame:
    rows = [(one.user_id, one.item_id, one.kind, one.value, START_MS + one.time_ms) for one in interactions(240)]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "kind", "value", "time"])


def command(folder: Path, *options: str, events: pd.DataFrame | None = None, space: str = SPACE) -> list[str]:
    folder.mkdir(exist_ok=True)
    (frame() if events is None else events).to_parquet(folder / "events.parquet")
    (folder / "space.yaml").write_text(space)
    files = {"--data": folder / "events.parquet", "--spec": SHIPPED, "--space": folder / "space.yaml", "--out": folder / "out"}
    return [*(str(text) for pair in files.items() for text in pair), "--scored-events", "24", "--trials", "3", *options]


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "report.json").read_text())


def outcomes(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(row["state"], row["values"], row["value"]) for row in report["trials"]]


def _check_files(folder: Path, report: dict[str, Any], said: str) -> None:
    sizes = report["events"]
    assert [sizes[name] for name in ("learned", "validation", "first", "test")] == [192, 24, 216, 24]
    spec = FeatureSpec.load(folder / "out" / "best_spec.yaml")
    assert spec.schema_hash == report["winner"]["schema_hash"]
    if report["winner"]["trial"] is not None:
        assert spec.learning.dense_rate == report["winner"]["values"]["learning.dense_rate"]
        assert yaml.safe_load((folder / "out" / "best_spec.yaml").read_text())["tables"]["user"]["dim"] == 16
    contestants = report["test"]["interact"]["all"]["contestants"]
    assert set(contestants) == {"winner", "winner_frozen", "start", "start_frozen", "items", "recent_items"}
    assert "winner: " in said and "relative to the spec started from" in said
    assert "| trial | state |" in (folder / "out" / "report.md").read_text()


def test_the_last_part_decides_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = frame()
    other.loc[216:, "item_id"] = [f"later{place}" for place in range(24)]
    other.loc[216:, "value"] = 1.0
    found = []
    for name, events in (("one", None), ("other", other)):
        assert main(command(tmp_path / name, "--trials", "2", events=events)) == 0
        found.append(report_of(tmp_path / name))
    assert outcomes(found[0]) == outcomes(found[1])
    assert found[0]["winner"]["values"] == found[1]["winner"]["values"]
    assert found[0]["test"] != found[1]["test"]
    _check_files(tmp_path / "other", found[1], capsys.readouterr().out)


def test_events_that_are_not_in_memory_give_the_same_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(command(tmp_path / "memory", "--trials", "1")) == 0
    shrink(monkeypatch, rows=16, text_bytes=128)
    assert main(command(tmp_path / "disk", "--trials", "1")) == 0
    one, two = (report_of(tmp_path / name) for name in ("memory", "disk"))
    assert outcomes(one) == outcomes(two) and one["test"] == two["test"]
    assert sorted(path.name for path in (tmp_path / "disk" / "out").iterdir() if "search.db" not in path.name) == [
        "best_spec.yaml", "report-interact.svg", "report-like.svg", "report.json", "report.md", "search.lock"
    ]  # fmt: skip


def test_trials_that_all_fail_end_the_command_with_their_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = command(tmp_path / "failing", space="learning.dense_rate: {float: [9.0, 10.0]}")
    step = Learner.step

    def fails_later(self: Learner, groups: Any) -> Any:
        if self.config.dense_rate > 1:
            raise MemoryError("none left")
        return step(self, groups)

    monkeypatch.setattr(Learner, "step", fails_later)
    assert main(options) == 1
    assert "no trial was finished:\n3 of 3 trials: MemoryError: none left" in capsys.readouterr().err
    assert not (tmp_path / "failing" / "out" / "best_spec.yaml").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trials", "0"], "--trials and --scored-events must be at least 1"),
        (["--timeout-seconds", "0"], "--timeout-seconds must be above 0"),
        (["--validation", "0.6", "--held-out", "0.4"], "together below 1"),
        (["--out", "s3://bucket/search"], "takes a folder of this machine"),
        (["--task", "buy"], "has no such task; it has interact, like"),
        (["--held-out", "0.01"], "are left for the test part"),
    ],
)
def test_options_that_say_nothing_are_refused(tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path / "refused", *options)) == 2
    assert said in capsys.readouterr().err
