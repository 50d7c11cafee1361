"""After the warm-up a learner compiles nothing more, whatever it learns: a process of its own, whose kernels nobody has called."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from services.mesh.runner.environments import REPOSITORY_ROOT
from tests.kernels import called_from_python
from tests.learning import KEYED
from tests.limits import seconds

pytestmark = pytest.mark.ml

PROGRAM = """
import json, sys
import numpy as np
from tests.kernels import compiled
from tests.learning import SPEC, groups
from services.common.ranker.delta import DeltaBody, TableDelta, decode_body, encode_body
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.group_columns import columns_of
from services.trainer.server import make_learner
from services.trainer.warm_up import warm_up_learner
from tunemesh.events.v1 import delta_pb2

def spec_with(changed):
    document = SPEC.model_dump(mode="json") | changed.pop("spec", {})
    for table in document["tables"].values():
        for part, values in changed.items():
            table[part] |= values
    return FeatureSpec.parse(document)

def live(spec):
    learner = make_learner(spec)
    for life in range(2):
        some = groups(120, seed=life, spec=spec)
        learner.score(some[:3])
        for start in range(0, len(some), 8):
            learner.learn([columns_of(spec, group) for group in some[start : start + 8]])
            # As of a segment of which some samples are repetitions.
            learner.learn([columns_of(spec, group).only([0]) for group in some[start : start + 8]])
        tables = {}
        for name, table in learner.tables.items():
            table.evict(learner.steps)
            touched = table.take_touched()
            tables[name] = TableDelta(touched.ids, touched.rows, touched.tombstones)
            table.ack_touched(touched.token)
            table.lookup(np.arange(5))
            table.mark_touched(np.arange(5))
        for dtype in (delta_pb2.ROW_DTYPE_FP32, delta_pb2.ROW_DTYPE_BF16):
            decode_body(encode_body(DeltaBody(tables, learner.dense_state()), dtype), dtype)
        arrays = learner.state_arrays()
        for array in arrays.values():
            array.flags.writeable = False  # as those of a mapped file are
        learner = make_learner(spec)
        learner.load_state_arrays(arrays)
        learner.state_hash()

found = [compiled()]
for changed in json.loads(sys.argv[1]):
    spec = spec_with(changed)
    warm_up_learner(spec, make_learner)
    found.append(compiled())
    live(spec)
    found.append(compiled())
print(json.dumps(found))
"""

# What is rarest first: what is ready for one is ready for those behind it.
RARE = {"admission": {"min_count": 60}, "eviction": {"steps_to_live": 20, "max_rows": 50}}
AS_IT_SHIPS: dict[str, object] = {}
BLOOM = {"admission": {"min_count": 2, "max_element_size": 1_000}}
TABLES_OF_FEATURES = {"spec": {"format": 2, "features": KEYED}}


def test_nothing_is_compiled_after_the_warm_up_and_every_kernel_is_ready() -> None:
    words = [sys.executable, "-c", PROGRAM, json.dumps([RARE, AS_IT_SHIPS, BLOOM, TABLES_OF_FEATURES])]
    done = subprocess.run(words, cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=seconds(300), check=False)
    assert done.returncode == 0, done.stderr
    at_first, *pairs = json.loads(done.stdout.splitlines()[-1])
    assert at_first == {} and len(pairs[0]) > 10, "else this test sees nothing"
    for warm, lived in zip(pairs[::2], pairs[1::2], strict=True):
        assert lived == warm
    learning = ("services.trainer.", "services.common.ranker.pooling.")
    assert {name for name in called_from_python() if name.startswith(learning)} <= pairs[-1].keys()
