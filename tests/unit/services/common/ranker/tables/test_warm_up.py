"""After the warm-up the tables compile nothing more, whatever is done with them: a process of its own, whose kernels nobody has called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from services.mesh.runner.environments import REPOSITORY_ROOT
from tests.kernels import called_from_python
from tests.limits import seconds

PROGRAM = """
import json, sys, tempfile
import numpy as np
from tests.kernels import compiled
from services.common.ranker.tables.control_block import Applied
from services.common.ranker.tables.warm_up import warm_up_tables
from services.common.ranker.tables.writer import ModelWriter, TableImage
from services.common.ranker.tables.reader import ModelReader
from services.common.ranker.delta import DeltaBody, TableDelta, decode_body, encode_body
from services.recommender.nearest import EmbeddingRecall
from services.recommender.updater import base_artifact
from tunemesh.events.v1 import delta_pb2

at_first = compiled()
warm_up_tables()
before = compiled()
folder = tempfile.mkdtemp(dir=sys.argv[1])
rng = np.random.default_rng(0)
applied = lambda seq: Applied(base_id="b", epoch=3, seq=seq, watermark_ms=5, delta_offset=seq)
image = lambda n, dim: TableImage(np.arange(n, dtype=np.int64), rng.standard_normal((n, dim), np.float32), np.zeros(dim, np.float32))
for life in range(2):
    writer = ModelWriter(folder, "hash")
    if writer.applied is None:
        dense = {"dot_scale": np.ones(1, np.float32), "layer": np.ones((4, 3), np.float32)}
        writer.build({"user": image(500, 18), "item": image(3_000, 18)}, dense, applied(0), lineage_id="l")
    readers = [ModelReader(folder, "hash") for _ in range(2)]
    for seq in range(life * 20 + 1, life * 20 + 20):
        ids = np.unique(rng.integers(0, 30_000, 2_000))
        gone = np.setdiff1d(rng.integers(0, 30_000, 100), ids)
        body = DeltaBody({"item": TableDelta(ids, rng.standard_normal((ids.size, 18), np.float32), np.unique(gone))}, None)
        dtype = (delta_pb2.ROW_DTYPE_FP32, delta_pb2.ROW_DTYPE_BF16, delta_pb2.ROW_DTYPE_INT8_ROWWISE)[seq % 3]
        writer.apply(decode_body(encode_body(body, dtype), dtype), applied(seq))
        writer.check(0.3)
        for reader in readers:
            reader.read({"user": np.arange(3), "item": rng.integers(0, 30_000, 200)})
            reader.dense(), reader.status()
    writer.apply(DeltaBody({}, {"dot_scale": np.ones(1, np.float32), "layer": np.ones((4, 3), np.float32)}), applied(life * 20 + 20))
    readers[0].iter_rows("item")
    writer.close()

class Items:
    def item_id(self, key): return str(key)
    def take_key_changes(self): return [(key, True) for key in range(100)]

recall = EmbeddingRecall(lambda: ModelReader(folder, "hash"), Items(), num_reserved_dims=2, refresh_s=1.0)
recall.refresh()
recall._search(recall._reader, "u", ["1", "2"], 10)
after = compiled()
print(json.dumps({"at first": at_first, "warm": before, "new": {name: after[name] for name in after if after[name] != before.get(name)}}))
"""


def test_nothing_is_compiled_after_the_warm_up_and_every_kernel_is_ready(tmp_path: Path) -> None:
    words = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=seconds(120), check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["at first"] == {} and len(found["warm"]) > 10, "else this test sees nothing"
    # Those of scoring and pooling are the ranker's and the learner's to warm up, which have tests of their own.
    others = ("services.common.ranker.networks.", "services.common.ranker.pooling.")
    of_tables = {name for name in called_from_python() if name.startswith("services.common.") and not name.startswith(others)}
    assert of_tables <= found["warm"].keys()
    assert found["new"] == {}
