"""Networks that the feature spec names, on a real tritonserver: from base training to scores, one's own beside the spec included."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from services.common.platform.artifacts import read_artifact
from services.common.platform.errors import ConfigurationError
from services.common.platform.ids import entity_key
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Declared, past_of
from services.common.ranker.states import HistoryEntry
from services.common.ranker.tables.control_block import Applied
from services.common.ranker.tables.writer import ModelWriter, TableImage
from services.mesh.runner.environments import REPOSITORY_ROOT
from tests.conftest import TritonServer
from tests.integration.ranker.test_ranker_model import FEATURES, NUM_ITEMS, Client
from tests.learning import SPEC, interactions

pytestmark = [pytest.mark.integration, pytest.mark.ml, pytest.mark.deep]

OWN = """
from services.common.ranker.networks.dense import Head
from services.common.ranker.networks.interface import RankerNetwork
from torch import nn, stack


class Net(RankerNetwork):
    def build(self, spec):
        self.towers = nn.ModuleList(Head(self.num_content, [8]) for _ in range(self.num_tasks))

    def deep(self, samples):
        return stack([tower(samples.item_BC) for tower in self.towers], dim=1)
"""


def started(folder: Path, network: object, features: list[object] | None = None) -> tuple[FeatureSpec, TritonServer]:
    """Write the feature spec and start a Triton on it, over a tables folder that is still empty."""
    path = folder / "spec.yaml"
    declared = {"format": 2, "features": features} if features else {}
    path.write_text(yaml.safe_dump(SPEC.model_dump(mode="json") | {"network": network} | declared))
    env = {
        "TUNEMESH_TABLES_DIR": str(folder / "tables"),
        "TUNEMESH_FEATURE_SPEC": str(path),
        "TUNEMESH_TELEMETRY_DIR": str(folder / "telemetry"),
        "OMP_NUM_THREADS": "1",
    }
    server = TritonServer(folder, repository=REPOSITORY_ROOT / "model_repo", models=("ranker",), env=env)
    return FeatureSpec.load(path), server


@pytest.mark.parametrize("network", ["mmoe", {"module": "own_net:Net"}], ids=["mmoe", "own"])
def test_a_base_of_the_network_is_trained_and_served_as_the_learner_scores(tmp_path: Path, network: object) -> None:
    from services.trainer.learner import Learner
    from services.trainer.train import main as train

    (tmp_path / "own_net.py").write_text(OWN)
    spec, server = started(tmp_path, network)
    with contextlib.ExitStack() as running:
        running.callback(server.stop)
        data = tmp_path / "events.csv"
        rows = [f"{one.user_id},{one.item_id},rating,{one.value},{one.time_ms // 1000}" for one in interactions(200)]
        data.write_text("\n".join(["user_id,item_id,kind,value,time", *rows]) + "\n")
        assert train(["--data", str(data), "--spec", spec.source, "--out", str(tmp_path / "base"), "--time-unit", "s"]) == 0
        _, arrays = read_artifact(tmp_path / "base", expect_schema_hash=spec.schema_hash)
        learner = Learner(spec)
        learner.load_state_arrays(arrays)
        images = {
            name: TableImage(arrays[f"table/{name}/ids"], arrays[f"table/{name}/rows"], learner.tables[name].default_row)
            for name in ("user", "item")
        }
        writer = running.enter_context(contextlib.closing(ModelWriter(tmp_path / "tables", spec.schema_hash)))
        applied = Applied(epoch=1, seq=0, watermark_ms=0, base_id="base")
        writer.build(images, learner.dense_state(), applied, lineage_id="l")
        block, items = exposure_block.encode(FEATURES, spec.schema_hash), [str(item) for item in range(NUM_ITEMS)]
        answer = Client(server.http_url).infer_when_ready(FEATURES.user_key, [entity_key(item) for item in items], block)
        np.testing.assert_allclose(answer["SCORES"], learner.score_block(block, items), rtol=0, atol=1e-5)


def test_tables_of_declared_features_are_trained_and_served_as_the_learner_scores(tmp_path: Path) -> None:
    from services.trainer.learner import Learner
    from services.trainer.train import main as train

    features = [
        {"id_feature": {"feature_name": "page", "expression": "context:page", "embedding_dim": 8}},
        {"id_feature": {"feature_name": "brand", "expression": "item:brand", "embedding_dim": 4, "pooling": "mean"}},
        {"combo_feature": {"feature_name": "both", "expression": ["context:page", "item:brand"], "embedding_dim": 8}},
    ]
    spec, server = started(tmp_path, "dcn_din", features)
    with contextlib.ExitStack() as running:
        running.callback(server.stop)
        data = tmp_path / "events.jsonl"
        rows = [
            {
                "user_id": one.user_id,
                "item_id": one.item_id,
                "kind": "rating",
                "value": one.value,
                "time": one.time_ms // 1000,
                "page": f"p{at % 3}",
                "brand": [f"b{int(one.item_id) % 5}", "all"],
            }
            for at, one in enumerate(interactions(200))
        ]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert train(["--data", str(data), "--spec", spec.source, "--out", str(tmp_path / "base"), "--time-unit", "s"]) == 0
        _, arrays = read_artifact(tmp_path / "base", expect_schema_hash=spec.schema_hash)
        assert all(len(arrays[f"table/{name}/ids"]) >= 3 for name in ("page", "brand", "both"))
        learner = Learner(spec)
        learner.load_state_arrays(arrays)
        images = {
            name: TableImage(arrays[f"table/{name}/ids"], arrays[f"table/{name}/rows"], learner.tables[name].default_row)
            for name in spec.all_tables
        }
        writer = running.enter_context(contextlib.closing(ModelWriter(tmp_path / "tables", spec.schema_hash)))
        writer.build(images, learner.dense_state(), Applied(epoch=1, seq=0, watermark_ms=0, base_id="base"), lineage_id="l")
        items, client, scores = [str(item) for item in range(NUM_ITEMS)], Client(server.http_url), []
        for page in ("p1", "never seen"):
            brands = spec.plan.items([{"brand": [f"b{item % 6}"]} for item in range(NUM_ITEMS)])
            shown = replace(FEATURES, keys=Declared.of(spec.plan, {}, {"page": page}, brands).keys)
            block = exposure_block.encode(shown, spec.schema_hash)
            answer = client.infer_when_ready(FEATURES.user_key, [entity_key(item) for item in items], block)
            np.testing.assert_allclose(answer["SCORES"], learner.score_block(block, items), rtol=0, atol=1e-5)
            scores.append(answer["SCORES"])
        assert np.abs(scores[0] - scores[1]).max() > 1e-4
        with pytest.raises(RuntimeError, match="features of user and item, the feature spec has"):
            client.infer(FEATURES.user_key, [entity_key(item) for item in items], exposure_block.encode(FEATURES, spec.schema_hash))


@pytest.mark.parametrize("network", ["dcn_din", "din", "deepfm"])
def test_sequences_are_trained_and_served_as_the_learner_scores_several_requests_at_once_too(tmp_path: Path, network: str) -> None:
    from services.trainer.learner import Learner
    from services.trainer.train import main as train

    parts = [
        {"id_feature": {"feature_name": "brand", "expression": "item:brand", "embedding_dim": 8, "pooling": "mean"}},
        {"id_feature": {"feature_name": "item", "expression": "sequence:item_id", "embedding_dim": 4}},
        {"raw_feature": {"feature_name": "age", "expression": "sequence:age", "boundaries": [60, 600], "embedding_dim": 4}},
    ]
    spec, server = started(tmp_path, network, [{"sequence_feature": {"sequence_name": "latest", "sequence_length": 8, "features": parts}}])
    with contextlib.ExitStack() as running:
        running.callback(server.stop)
        data, acts = tmp_path / "events.jsonl", interactions(200)
        columns = [{"user_id": one.user_id, "item_id": one.item_id, "kind": "rating", "value": one.value} for one in acts]
        more = [{"time": one.time_ms // 1000, "brand": [f"b{int(one.item_id) % 5}", "all"]} for one in acts]
        data.write_text("".join(json.dumps(row | rest) + "\n" for row, rest in zip(columns, more, strict=True)))
        assert train(["--data", str(data), "--spec", spec.source, "--out", str(tmp_path / "base"), "--time-unit", "s"]) == 0
        _, arrays = read_artifact(tmp_path / "base", expect_schema_hash=spec.schema_hash)
        assert all(len(arrays[f"table/latest__{name}/ids"]) >= 2 for name in ("brand", "item", "age"))
        learner = Learner(spec)
        learner.load_state_arrays(arrays)
        images = {
            name: TableImage(arrays[f"table/{name}/ids"], arrays[f"table/{name}/rows"], learner.tables[name].default_row)
            for name in spec.all_tables
        }
        writer = running.enter_context(contextlib.closing(ModelWriter(tmp_path / "tables", spec.schema_hash)))
        writer.build(images, learner.dense_state(), Applied(epoch=1, seq=0, watermark_ms=0, base_id="base"), lineage_id="l")
        items, client = [str(item) for item in range(NUM_ITEMS)], Client(server.http_url)
        of_items = spec.plan.items([{"brand": [f"b{item % 6}"]} for item in range(NUM_ITEMS)])
        blocks, expected = [], []
        for num_events in (0, 3, 20):
            history = [HistoryEntry(str(at), 0.5, 1_000_000 - 70_000 * at) for at in range(num_events)]
            past = past_of(history, 1_000_000, of_items, np.arange(num_events) % NUM_ITEMS)
            shown = replace(FEATURES, keys=Declared.of(spec.plan, {}, {}, of_items, past, items).keys)
            blocks.append(exposure_block.encode(shown, spec.schema_hash))
            expected.append(learner.score_block(blocks[-1], items))
            answer = client.infer_when_ready(FEATURES.user_key, [entity_key(item) for item in items], blocks[-1])
            np.testing.assert_allclose(answer["SCORES"], expected[-1], rtol=0, atol=1e-5)
        assert np.abs(expected[0] - expected[1]).max() > 1e-4 < np.abs(expected[1] - expected[2]).max()
        merged = client.infer([FEATURES.user_key] * 3, [entity_key(item) for item in items] * 3, b"".join(blocks))
        np.testing.assert_allclose(merged["SCORES"], np.concatenate(expected), rtol=0, atol=1e-5)


def test_a_network_that_cannot_be_made_is_not_loaded_and_said_with_file_and_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="tritonserver ended with code"):
        started(tmp_path, {"module": "no_such_net:Net"})
    assert "key network.module: 'no_such_net:Net': No module named 'no_such_net'" in (tmp_path / "triton.log").read_text()
