"""The demo's frozen copy scores logged features as the learner whose base it reads, whatever the spec declares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tunemesh.events.v1.exposure_pb2 import Exposure

from loadtests.demo.frozen import FrozenRanker
from services.common.platform.artifacts import read_artifact
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.learner import Learner
from services.trainer.train import main as train
from tests.learning import KEYED, SEQUENCE, SPEC, groups, interactions

pytestmark = pytest.mark.ml


@pytest.mark.parametrize("features", [[], KEYED, [*KEYED, SEQUENCE]], ids=["none", "keyed", "sequence"])
def test_it_scores_as_the_learner(tmp_path: Path, features: list[object]) -> None:
    torch.set_num_threads(1)
    path, data = tmp_path / "spec.yaml", tmp_path / "events.jsonl"
    path.write_text(yaml.safe_dump(SPEC.model_dump(mode="json") | ({"format": 2, "features": features} if features else {})))
    spec = FeatureSpec.load(path)
    rows = [
        {
            "user_id": one.user_id,
            "item_id": one.item_id,
            "kind": "rating",
            "value": one.value,
            "time": one.time_ms // 1000,
            "hour": at % 24,
            "city": f"c{at % 3}",
            "tags": [f"t{int(one.item_id) % 9}"],
            "origin": f"c{int(one.item_id) % 4}",
        }
        for at, one in enumerate(interactions(150))
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train(["--data", str(data), "--spec", str(path), "--out", str(tmp_path / "base"), "--time-unit", "s"]) == 0
    learner = Learner(spec)
    learner.load_state_arrays(read_artifact(tmp_path / "base", expect_schema_hash=spec.schema_hash)[1])
    every = groups(40, spec=spec)[30:]
    exposures = [Exposure(item_ids=[one.item_id for one in group.samples], features_block=group.features_block) for group in every]
    for exposure, found in zip(exposures, FrozenRanker(spec, tmp_path / "base").score(exposures), strict=True):
        np.testing.assert_allclose(found, learner.score_block(exposure.features_block, exposure.item_ids), atol=1e-5)
