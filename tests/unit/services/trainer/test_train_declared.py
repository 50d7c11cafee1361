"""A base under a spec with declared features: read from files, learned, written; and what was planted in them is found."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from services.common.platform.artifacts import read_artifact
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer import train
from services.trainer.attribute_history import AttributeHistory
from services.trainer.batch import train_epoch
from services.trainer.event_files.history import read_history
from services.trainer.event_files.parts import ReadOptions
from services.trainer.held_out.evaluation import JSON_NAME
from services.trainer.learner import Learner
from services.trainer.replay_order import BatchConfig, replay_order
from tests.learning import SPEC

pytestmark = pytest.mark.ml

FEATURES = [
    {"id_feature": {"feature_name": "taste", "expression": "user:taste", "vocab_list": ["even", "odd"]}},
    {
        "expr_feature": {
            "feature_name": "fits",
            "expression": "1 if (likes_odd == is_odd) else -1",
            "variables": ["user:likes_odd", "item:is_odd"],
        }
    },
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def spec_with(features: list[dict[str, Any]]) -> FeatureSpec:
    return FeatureSpec.parse(SPEC.model_dump(mode="json") | {"format": 2, "features": features})


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Events of 150 users, seen four times each, who like what has their own parity: counters cannot know it of a user so new."""
    folder, rng = tmp_path_factory.mktemp("planted"), np.random.default_rng(0)
    events = []
    for at in range(600):
        user, item = at // 4, int(rng.integers(40))
        events.append(
            {
                "user_id": f"u{user}",
                "item_id": item,
                "kind": "rating",
                "value": 5 if (user + item) % 2 == 0 else 1,
                "time": 1_700_000_000 + 60 * at,
            }
        )
    users = [{"user_id": f"u{user}", "taste": ("even", "odd")[user % 2], "likes_odd": user % 2} for user in range(150)]
    items = [{"item_id": item, "is_odd": item % 2} for item in range(40)]
    return write(folder / "events.csv", events), write(folder / "users.csv", users), write(folder / "items.csv", items)


def loss_of_like(spec: FeatureSpec, files: tuple[Path, Path, Path]) -> float:
    """Return the loss of the task `like` over a second pass, each event's before it was learned."""
    history = read_history(files[0], spec, ReadOptions(users=files[1], items=files[2]))
    attributes = AttributeHistory(spec.plan, history.user_attributes, history.item_attributes)
    learner, config = Learner(spec), BatchConfig(events_per_step=8)
    placed = replay_order(history.interactions, config)
    for epoch in range(2):
        _, stats = train_epoch(spec, learner, placed, history.categories, config, epoch, attributes=attributes)
    return float(stats.loss_by_task[spec.task_names.index("like")] / stats.num_events)


def test_what_is_planted_in_an_attribute_is_learned(files: tuple[Path, Path, Path]) -> None:
    without, with_features = (loss_of_like(spec_with(features), files) for features in ([], FEATURES))
    assert with_features < 0.7 * without, (with_features, without)


def test_what_is_planted_in_a_categorical_of_thousands_of_values_is_learned_by_rows_of_a_table(tmp_path: Path) -> None:
    """Each value of `query` is liked or not, and nothing else says so: neither user, nor item, nor counters."""
    rng, num_values = np.random.default_rng(0), 2_000
    is_liked, chances = rng.random(num_values) < 0.5, 1.0 / np.arange(1, num_values + 1)
    queries = rng.choice(num_values, size=3_000, p=chances / chances.sum())
    events = [
        {
            "user_id": f"u{at // 5}",
            "item_id": int(rng.integers(60)),
            "kind": "rating",
            "value": 5 if is_liked[query] else 1,
            "time": 1_700_000_000 + 60 * at,
            "query": f"q{query}",
        }
        for at, query in enumerate(queries.tolist())
    ]
    assert len(set(queries.tolist())) > 700
    data, aucs = write(tmp_path / "events.csv", events), {}
    keyed = {"id_feature": {"feature_name": "query", "expression": "context:query", "embedding_dim": 8, "embedding_name": "queries"}}
    for name, features in (("without", []), ("with", [keyed])):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(spec_with(features).model_dump(mode="json", exclude_defaults=True)))
        options = ["--data", str(data), "--spec", str(path), "--out", str(tmp_path / name), "--held-out", "0.2"]
        assert train.main(options) == 0
        report = json.loads((tmp_path / name / JSON_NAME).read_text())
        aucs[name] = report["tasks"]["like"]["all"]["contestants"]["frozen"]["auc"]
        assert report["base"]["rows"].get("queries", 0) == (len(set(queries.tolist())) if features else 0)
    assert aucs["with"]["low"] > aucs["without"]["high"] and aucs["with"]["value"] > aucs["without"]["value"] + 0.15, aucs


def test_the_command_writes_the_same_base_twice_under_the_hash_of_its_features(
    files: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec_with(FEATURES)
    path = tmp_path / "team.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_defaults=True)))
    hashes = []
    for name in ("one", "two"):
        options = ["--data", str(files[0]), "--users", str(files[1]), "--items", str(files[2])]
        assert train.main([*options, "--spec", str(path), "--out", str(tmp_path / name)]) == 0
        manifest, arrays = read_artifact(tmp_path / name, expect_schema_hash=spec.schema_hash)
        hashes.append(manifest.metadata["state_hash"])
        Learner(spec).load_state_arrays(arrays)
    assert hashes[0] == hashes[1]
    said = capsys.readouterr().out
    assert f"{files[1]}: attributes of 150 users in 150 versions" in said
    report = json.loads((tmp_path / "two" / "report.json").read_text())["base"]["features"]
    assert report["known"] == {"user:taste": 1.0, "user:likes_odd": 1.0, "item:is_odd": 1.0}
    assert report["columns"] == [*spec.plan.user_columns, *spec.plan.item_columns]
    for text in (said, (tmp_path / "two" / "report.md").read_text()):
        assert re.search(r"[Dd]eclared features: 6 columns of user:taste \(known of 100\.0% of the events\), user:likes_odd", text)


def test_a_file_without_what_a_feature_reads_is_one_line_and_exit_code_two(
    files: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "team.yaml"
    path.write_text(yaml.safe_dump(spec_with(FEATURES).model_dump(mode="json", exclude_defaults=True)))
    assert train.main(["--data", str(files[0]), "--users", str(files[1]), "--spec", str(path), "--out", str(tmp_path / "base")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("configuration error: ") and error.count("\n") == 1
    assert "column 'is_odd' (or 'item:is_odd') is missing, and a feature of the spec reads item:is_odd" in error
