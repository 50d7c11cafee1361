from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from services.common.platform.artifacts import read_artifact
from services.common.platform.errors import ConfigurationError
from services.common.ranker.feature_records import item_key, unpack_records
from services.common.ranker.states import Interaction, ItemState
from services.trainer import train
from services.trainer.event_files.history import read_history
from services.trainer.event_files.parts import ReadOptions
from services.trainer.learner import Learner
from services.trainer.training_checkpoint import TrainingCheckpoints
from tests.learning import CATEGORIES, SPEC, interactions
from tests.small_batches import shrink

pytestmark = pytest.mark.ml

FIRST_S = 1_700_000_000
SHIPPED = "model_repo/ranker/feature_spec.yaml"


def expected(count: int) -> list[Interaction]:
    return [replace(one, time_ms=FIRST_S * 1000 + one.time_ms) for one in interactions(count)]


def events(count: int = 200) -> pd.DataFrame:
    rows = [
        {"user_id": one.user_id, "item_id": one.item_id, "kind": one.kind, "value": one.value, "time": one.time_ms // 1000}
        for one in expected(count)
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(title="T", categories=[list(CATEGORIES[item]) for item in frame["item_id"]])


def csv(frame: pd.DataFrame, folder: Path) -> Path:
    path = folder / "events.csv"
    if "categories" in frame.columns:
        frame = frame.assign(categories=["|".join(names) for names in frame["categories"]])
    frame.to_csv(path, index=False)
    return path


def parquet(frame: pd.DataFrame, folder: Path) -> Path:
    path = folder / "events.parquet"
    frame.to_parquet(path)
    return path


def test_parquet_and_csv_give_the_same_history(tmp_path: Path) -> None:
    one, two = (read_history(write(events(), tmp_path), SPEC) for write in (csv, parquet))
    assert (one.interactions, one.categories) == (two.interactions, two.categories)
    assert one.interactions == expected(200)
    assert one.categories["3"] == ("odd",)


def test_dates_are_taken_as_well_as_seconds(tmp_path: Path) -> None:
    frame = events(5)
    dated = frame.assign(time=pd.to_datetime(frame["time"], unit="s", utc=True).astype(str))
    dates, numbers = (read_history(path, SPEC) for path in (csv(dated, tmp_path), parquet(frame, tmp_path)))
    assert dates.interactions == numbers.interactions == expected(5)


def test_only_the_oldest_part_is_learned_but_the_whole_catalogue_is_known(tmp_path: Path) -> None:
    frame = events(100).sample(frac=1.0, random_state=0)
    history = read_history(csv(frame, tmp_path), SPEC, ReadOptions(until_fraction=0.6))
    assert history.interactions == expected(100)[:60]
    assert history.categories.keys() == set(frame["item_id"])


def test_the_command_writes_a_base_that_learning_and_features_go_on_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unrated = events().tail(1).assign(value=0.0)
    data = csv(pd.concat([events(), unrated]), tmp_path)
    hashes = []
    for name in ("one", "two"):
        assert train.main(["--data", str(data), "--spec", SHIPPED, "--out", str(tmp_path / name), "--epochs", "2"]) == 0
        manifest, arrays = read_artifact(tmp_path / name, expect_schema_hash=SPEC.schema_hash)
        assert (manifest.kind, manifest.epoch, manifest.seq) == ("base", 0, -1)
        assert (manifest.metadata["events"], manifest.metadata["set_aside"]) == (200, {"value of kind 'rating' is outside its range": 1})
        learner = Learner(SPEC)
        learner.load_state_arrays(arrays)
        hashes.append(learner.state_hash())
        assert learner.state_hash() == manifest.metadata["state_hash"]
        assert len(learner.tables["item"].take_touched().ids) == 0
        records = dict(
            unpack_records({key.removeprefix("features/"): value for key, value in arrays.items() if key.startswith("features/")})
        )
        item = interactions(200)[0].item_id
        times = sum(one.item_id == item for one in interactions(200))
        assert ItemState.from_bytes(SPEC, records[item_key(item, "b")]).tally.acts == times
    assert hashes[0] == hashes[1]
    # Whoever keeps a base can tell by these whether today's code would make another one.
    learner, tables, network = (
        "services/trainer/learner.py",
        "services/trainer/trainer_table.py",
        "services/common/ranker/networks/blocks.py",
    )
    assert {learner, tables, network} <= manifest.metadata["sources"].keys()
    assert not any(".venv" in path or path.startswith("/") for path in manifest.metadata["sources"])
    said = capsys.readouterr().out
    assert "pass 2/2" in said and "time: Unix seconds" in said
    assert f"set aside: 1 events whose value of kind 'rating' is outside its range (the first: {data} row 201: 0)" in said
    assert np.isfinite(arrays["table/item/rows"]).all()


def test_the_report_of_the_held_out_part_stands_beside_the_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = csv(events(400), tmp_path), tmp_path / "base"
    command = ["--data", str(data), "--spec", SHIPPED, "--out", str(out)]
    assert train.main(command) == 0
    manifest, _ = read_artifact(out, expect_schema_hash=SPEC.schema_hash)
    report = json.loads((out / "report.json").read_text())
    assert (report["held_out"]["first_part"], report["held_out"]["events"], report["held_out"]["scored"]) == (360, 40, 40)
    assert (manifest.metadata["events"], report["base"]["state_hash"]) == (400, manifest.metadata["state_hash"])
    assert report["tasks"]["interact"]["all"]["positives"] == 40
    assert report["seconds"].keys() == {"reading", "training", "held-out part"}
    assert "The base contains all events" in (out / "report.md").read_text()
    said = capsys.readouterr().out
    assert "held out: the last 40 of 400 events" in said
    assert "report written to" in said
    other = tmp_path / "first"
    assert train.main([*command[:-1], str(other), "--first-part-only"]) == 0
    first, _ = read_artifact(other, expect_schema_hash=SPEC.schema_hash)
    assert first.metadata["events"] == 360
    again = json.loads((other / "report.json").read_text())
    assert again["tasks"] == report["tasks"]
    assert again["base"]["learned"].startswith("The base contains the first part only")


def test_a_place_that_holds_a_base_is_refused_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--data", str(csv(events(30), tmp_path)), "--spec", SHIPPED, "--out", str(tmp_path / "base")]
    assert train.main(command) == 0
    capsys.readouterr()
    assert train.main([*command, "--data", "absent"]) == 2
    said = capsys.readouterr()
    assert "exists already" in said.err
    assert not said.out


def test_a_held_out_part_that_would_say_nothing_is_learned_with_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, hashes = csv(events(100), tmp_path), []
    for name, options in (("default", []), ("off", ["--held-out", "0"])):
        assert train.main(["--data", str(data), "--spec", SHIPPED, "--out", str(tmp_path / name), *options]) == 0
        hashes.append(read_artifact(tmp_path / name, expect_schema_hash=SPEC.schema_hash)[0].metadata["state_hash"])
        assert not (tmp_path / name / "report.json").exists()
    assert hashes[0] == hashes[1]
    assert capsys.readouterr().out.count("no held-out report: of 100 events 10 are left for it; it takes 20") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--held-out", "1"], "--held-out must be in [0, 1)"),
        (["--held-out", "-0.1"], "--held-out must be in [0, 1)"),
        (["--scored-events", "0"], "--scored-events must be at least 1"),
        (["--held-out", "0", "--first-part-only"], "--first-part-only leaves out the held-out part"),
    ],
)
def test_options_that_contradict_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    assert train.main(["--data", "x", "--spec", SHIPPED, "--out", str(tmp_path / "base"), *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("epochs", ["1", "2"])
def test_a_base_of_events_on_disk_is_that_of_events_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], epochs: str
) -> None:
    """Also where the process dies at every other checkpoint, and reads the files again."""
    data = parquet(events(400).sample(frac=1.0, random_state=0), tmp_path)
    command = ["--data", str(data), "--spec", SHIPPED, "--epochs", epochs, "--checkpoint-every", "128", "--out"]
    assert train.main([*command, str(tmp_path / "memory")]) == 0
    shrink(monkeypatch, rows=16, text_bytes=1000)
    written: list[bool] = []
    write = TrainingCheckpoints.write

    def dying(self: TrainingCheckpoints, *args: Any) -> None:
        write(self, *args)
        written.append(True)
        if len(written) % 2:
            assert (tmp_path / "disk.events").is_dir()
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingCheckpoints, "write", dying)
    code = None
    while code is None:
        try:
            code = train.main([*command, str(tmp_path / "disk")])
        except KeyboardInterrupt:
            assert not (tmp_path / "disk.events").exists()
    assert code == 0 and len(written) > 1
    (one, arrays), (two, others) = (read_artifact(tmp_path / name, expect_schema_hash=SPEC.schema_hash) for name in ("memory", "disk"))
    assert one.metadata["state_hash"] == two.metadata["state_hash"]
    assert {name: array.tobytes() for name, array in arrays.items()} == {name: array.tobytes() for name, array in others.items()}
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("memory", "disk")]
    assert reports[0]["tasks"] == reports[1]["tasks"]
    said = capsys.readouterr().out
    assert "reading: 400 rows in " in said and "rows/s; in memory" in said and "sorted runs merged" in said
    assert said.count("going on from a checkpoint") == (len(written) + 1) // 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "events.parquet", "memory"]


def test_a_mistake_is_one_line_and_exit_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--data", str(tmp_path / "absent.csv"), "--spec", SHIPPED, "--out", str(tmp_path / "base")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("configuration error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("categories", "said"),
    [
        (["x" * 65_536], r"outside their bounds\[0\]: it has 65536 bytes; it must have 1 to 256"),
        ([f"c{number}" for number in range(300)], r"outside their bounds: there are 300; an item has at most 256"),
    ],
)
def test_categories_that_no_state_should_hold_are_refused_before_the_pass(tmp_path: Path, categories: list[str], said: str) -> None:
    frame = events(5)
    frame["categories"] = [categories] * 5
    with pytest.raises(ConfigurationError, match=said):
        read_history(parquet(frame, tmp_path), SPEC)
