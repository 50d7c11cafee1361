from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from services.common.platform.artifacts import read_artifact
from services.common.platform.errors import ConfigurationError
from services.common.ranker.feature_records import item_key, unpack_records
from services.common.ranker.states import ItemState
from services.trainer import train
from services.trainer.learner import Learner
from tests.learning import CATEGORIES, SPEC, interactions

pytestmark = pytest.mark.ml

SHIPPED = "model_repo/ranker/feature_spec.yaml"


def events(count: int = 200) -> pd.DataFrame:
    rows = [
        {"user_id": one.user_id, "item_id": one.item_id, "kind": one.kind, "value": one.value, "time": one.time_ms // 1000}
        for one in interactions(count)
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
    one, two = (train.read_history(write(events(), tmp_path), SPEC) for write in (csv, parquet))
    assert one == two
    assert one.interactions == interactions(200)
    assert one.categories["3"] == ("odd",)


def test_dates_are_taken_as_well_as_seconds(tmp_path: Path) -> None:
    frame = events(5)
    dated = frame.assign(time=pd.to_datetime(frame["time"], unit="s", utc=True).astype(str))
    assert train.read_history(csv(dated, tmp_path), SPEC) == train.read_history(parquet(frame, tmp_path), SPEC)


def test_only_the_oldest_part_is_learned_but_the_whole_catalogue_is_known(tmp_path: Path) -> None:
    frame = events(100).sample(frac=1.0, random_state=0)
    history = train.read_history(csv(frame, tmp_path), SPEC, until_fraction=0.6)
    assert history.interactions == interactions(100)[:60]
    assert history.categories.keys() == set(frame["item_id"])


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("kind", "thumb", "kind 'thumb' is not in the feature spec"),
        ("value", "good", "'value', event 3: 'good' is not a finite number"),
        ("user_id", "", r"'user_id', events\[3\]: it is empty"),
        ("time", "soon", "'time' is neither Unix seconds nor dates"),
    ],
)
def test_a_wrong_value_is_refused_with_its_column(tmp_path: Path, column: str, value: str, says: str) -> None:
    frame = events(10).astype({column: object})
    frame.loc[3, column] = value
    with pytest.raises(ConfigurationError, match=says):
        train.read_history(csv(frame, tmp_path), SPEC)


def test_a_missing_column_file_or_event_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="column 'kind' is missing"):
        train.read_history(csv(events(5).drop(columns="kind"), tmp_path), SPEC)
    with pytest.raises(ConfigurationError, match=r"absent\.csv"):
        train.read_history(tmp_path / "absent.csv", SPEC)
    with pytest.raises(ConfigurationError, match="holds no events"):
        train.read_history(csv(events(5).head(0), tmp_path), SPEC)


def test_the_command_writes_a_base_that_learning_and_features_go_on_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = csv(events(), tmp_path)
    hashes = []
    for name in ("one", "two"):
        assert train.main(["--data", str(data), "--spec", SHIPPED, "--out", str(tmp_path / name), "--epochs", "2"]) == 0
        manifest, arrays = read_artifact(tmp_path / name, expect_schema_hash=SPEC.schema_hash)
        assert (manifest.kind, manifest.epoch, manifest.seq) == ("base", 0, -1)
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
    assert {"services/trainer/learner.py", "services/trainer/trainer_table.py", "services/common/ranker/network.py"} <= manifest.metadata[
        "sources"
    ].keys()
    assert not any(".venv" in path or path.startswith("/") for path in manifest.metadata["sources"])
    assert "pass 2/2" in capsys.readouterr().out
    assert np.isfinite(arrays["table/item/rows"]).all()


def test_a_mistake_is_one_line_and_exit_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--data", str(tmp_path / "absent.csv"), "--spec", SHIPPED, "--out", str(tmp_path / "base")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("configuration error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "base").exists()
