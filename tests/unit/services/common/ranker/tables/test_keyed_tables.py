"""Rows of declared features from the trainer to Triton's model: base, deltas and tombstones, mapped, read and scored as in the trainer."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tunemesh.events.v1.delta_pb2 import ROW_DTYPE_FP32

from services.common.ranker import exposure_block
from services.common.ranker.delta import DeltaBody, TableDelta, decode_body, encode_body
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.tables.control_block import Applied
from services.common.ranker.tables.reader import ModelReader
from services.common.ranker.tables.writer import ModelWriter, TableImage
from services.trainer.bases import as_replicas_have_them
from services.trainer.learner import Learner
from tests.learning import KEYED, groups, with_features

pytestmark = pytest.mark.ml


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> Any:
    """The model of the repository, without a Triton."""
    sys.modules.setdefault("triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    spec = importlib.util.spec_from_file_location("ranker_model", "model_repo/ranker/1/model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ranker_model"] = module
    spec.loader.exec_module(module)
    return module


def build(writer: ModelWriter, spec: FeatureSpec, learner: Learner) -> None:
    arrays = as_replicas_have_them(learner.state_arrays(), ROW_DTYPE_FP32)
    tables = {name: TableImage(*(arrays[f"table/{name}/{part}"] for part in ("ids", "rows", "default_row"))) for name in spec.all_tables}
    dense = {name.removeprefix("dense/"): array for name, array in arrays.items() if name.startswith("dense/")}
    writer.build(tables, dense, Applied(base_id="b", epoch=1, seq=0, watermark_ms=5), lineage_id="l")
    for table in learner.tables.values():
        table.ack_touched(table.take_touched().token)


def apply_delta(writer: ModelWriter, learner: Learner, seq: int) -> int:
    """Bring the tables to the learner's state by a delta; return how many tombstones of features it had."""
    tables, num_gone = {}, 0
    for name, table in learner.tables.items():
        touched = table.take_touched()
        tables[name] = TableDelta(touched.ids, touched.rows, touched.tombstones)
        table.ack_touched(touched.token)
        num_gone += len(touched.tombstones) if name not in ("user", "item") else 0
    body = decode_body(encode_body(DeltaBody(tables, learner.dense_state()), ROW_DTYPE_FP32), ROW_DTYPE_FP32)
    writer.apply(body, Applied(base_id="b", epoch=1, seq=seq, watermark_ms=5))
    return num_gone


def assert_scored_alike(scorer: Any, reader: ModelReader, spec: FeatureSpec, learner: Learner) -> None:
    some = groups(50, spec=spec, seed=9)[:6]
    expected = learner.score(some)
    features = [exposure_block.decode(group.features_block, spec) for group in some]
    keys = np.array([int(sample.item_id) for group in some for sample in group.samples], np.int64)
    users = np.array([one.user_key for one in features], np.int64)
    together = scorer.score(users, keys, features).scores_NT
    np.testing.assert_allclose(together, np.concatenate(expected), rtol=0, atol=1e-5)
    at = 0
    for user, one, wanted in zip(users, features, expected, strict=True):
        alone = scorer.score(user[None], keys[at : at + len(one)], [one]).scores_NT
        np.testing.assert_allclose(alone, wanted, rtol=0, atol=1e-5)
        at += len(one)
    for name, table in learner.tables.items():
        ids, rows = reader.iter_rows(name)
        np.testing.assert_array_equal(ids, table.ids())
        np.testing.assert_array_equal(rows, table.lookup(ids))


@pytest.mark.parametrize("network", ["dcn_din", "deepfm", "two_tower"])
def test_a_replica_has_the_trainers_rows_and_scores_after_a_base_and_after_deltas(tmp_path: Path, model: Any, network: str) -> None:
    small = [{kind: {**keys, "max_rows": 5} if keys["feature_name"] == "tags" else keys for kind, keys in one.items()} for one in KEYED]
    spec = with_features(small, network=network)
    learner, every = Learner(spec), groups(72, spec=spec)
    for at in range(0, 48, 8):
        learner.step(every[at : at + 8])
    writer = ModelWriter(tmp_path, spec.schema_hash)
    build(writer, spec, learner)
    reader = ModelReader(tmp_path, spec.schema_hash)
    scorer = model.Scorer(spec, ModelReader(tmp_path, spec.schema_hash))
    scorer.warm_up()
    assert_scored_alike(scorer, reader, spec, learner)
    num_gone = 0
    for seq, at in enumerate(range(48, 72, 8), 1):
        learner.step(every[at : at + 8])
        learner.tables["tags"].evict(learner.steps)
        num_gone += apply_delta(writer, learner, seq)
        assert_scored_alike(scorer, reader, spec, learner)
    assert num_gone > 0
    writer.close()
