"""After its warm-up the ranker compiles nothing more: Triton's model in a process of its own, whose kernels nobody has called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.mesh.runner.environments import REPOSITORY_ROOT
from tests.kernels import called_from_python
from tests.learning import KEYED
from tests.limits import seconds

pytestmark = pytest.mark.ml

PROGRAM = """
import importlib.util, json, sys, types
import numpy as np
from tests.kernels import compiled
from tests.learning import groups, with_features
from services.common.ranker import exposure_block
from services.common.ranker.networks.registry import make_network
from services.common.ranker.tables.control_block import Applied
from services.common.ranker.tables.reader import ModelReader
from services.common.ranker.tables.writer import ModelWriter, TableImage

SPEC = with_features(json.loads(sys.argv[2]))
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
of_model = importlib.util.spec_from_file_location("model", "model_repo/ranker/1/model.py")
model = importlib.util.module_from_spec(of_model)
sys.modules["model"] = model
of_model.loader.exec_module(model)
dim = SPEC.tables.item.dim
image = TableImage(np.arange(500, dtype=np.int64), np.full((500, dim), 0.01, np.float32), np.zeros(dim, np.float32))
writer = ModelWriter(sys.argv[1], SPEC.schema_hash)
applied = Applied(base_id="b", epoch=1, seq=0, watermark_ms=5)
of_features = {
    name: TableImage(np.zeros(0, np.int64), np.zeros((0, table.dim), np.float32), np.zeros(table.dim, np.float32))
    for name, table in SPEC.all_tables.items()
}
writer.build(of_features | {"user": image, "item": image}, make_network(SPEC, 0).state(), applied, lineage_id="l")
writer.close()

at_first = compiled()
scorer = model.Scorer(SPEC, ModelReader(sys.argv[1], SPEC.schema_hash))
scorer.warm_up()
warm = compiled()
lengths = set()
for group in groups(60, spec=SPEC):
    features = exposure_block.decode(group.features_block, SPEC)  # as a request brings it
    lengths.add(len(features.history_keys_L))
    scorer.score(np.array([7], np.int64), np.arange(len(features), dtype=np.int64), [features])
assert len(lengths) > 2, lengths
print(json.dumps([at_first, warm, compiled()]))
"""


@pytest.mark.parametrize("features", [[], KEYED])
def test_nothing_is_compiled_in_a_request_and_every_kernel_of_scoring_is_ready(tmp_path: Path, features: list[object]) -> None:
    words = [sys.executable, "-c", PROGRAM, str(tmp_path), json.dumps(features)]
    done = subprocess.run(words, cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=seconds(300), check=False)
    assert done.returncode == 0, done.stderr
    of_writing, warm, served = json.loads(done.stdout.splitlines()[-1])
    of_scoring = {name for name in called_from_python() if ".networks." in name}
    assert of_scoring and not of_scoring & of_writing.keys(), "else this test sees nothing"
    assert of_scoring <= warm.keys()
    assert served == warm
