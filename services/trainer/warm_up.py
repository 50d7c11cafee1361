"""Has the learner's compiled code ready before the trainer says that it serves (why: services.common.ranker.tables.warm_up)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np
from tunemesh.events.v1 import delta_pb2
from tunemesh.samples.v1.sample_pb2 import Sample, SampleGroup, TaskLabel

from services.common.platform.ids import sample_id
from services.common.ranker import exposure_block
from services.common.ranker.delta import DeltaBody, TableDelta, decode_body, encode_body
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import build_features
from services.common.ranker.states import GlobalState, merge_item_bytes
from services.trainer.group_columns import columns_of
from services.trainer.neighbours import Learner

_NOBODY = "warm-up"
_NUM_ITEMS = 3
_STEPS = 3
_MANY = 1 << 20

_log = logging.getLogger(__name__)


def warm_up_learner(spec: FeatureSpec, make_learner: Callable[[FeatureSpec], Learner]) -> float:
    """Have a learner of the spec learn, forget, publish and go on from its own state, and throw it away; return the seconds."""
    started = time.perf_counter()
    learner = make_learner(spec)
    for step in range(_STEPS):
        learner.learn([columns_of(spec, _group(spec, f"{_NOBODY}-{step}-{number}")) for number in range(2)])
    for table in learner.tables.values():
        # However often an id must have occurred before it has a row.
        table.count_and_find(np.arange(2, dtype=np.int64), np.full(2, _MANY, np.int64))
        table.lookup(table.ids())
        table.evict(_STEPS)
    _publish(learner)
    arrays = learner.state_arrays()
    for array in arrays.values():
        array.flags.writeable = False  # as those of an artifact may be: other types to a kernel
    learner.load_state_arrays(arrays)
    learner.state_hash()
    took_s = time.perf_counter() - started
    _log.info("the compiled code of the learner is ready after %.1f s", took_s)
    return took_s


def _publish(learner: Learner) -> None:
    tables = {}
    for name, table in learner.tables.items():
        touched = table.take_touched()
        tables[name] = TableDelta(touched.ids, touched.rows, touched.tombstones)
    dtype = delta_pb2.ROW_DTYPE_FP32
    decode_body(encode_body(DeltaBody(tables, learner.dense_state()), dtype), dtype)


def _group(spec: FeatureSpec, request_id: str) -> SampleGroup:
    """Return a group about items that nobody was shown: one was chosen, the others were not."""
    items = merge_item_bytes(spec, [[None] * _NUM_ITEMS], [None])
    features = build_features(spec, _NOBODY, None, items, [()] * _NUM_ITEMS, GlobalState())
    samples = [
        Sample(
            sample_id=sample_id(request_id, str(number), 0),
            item_id=str(number),
            labels=[TaskLabel(task=task, value=float(number == 0)) for task in spec.task_names],
            keep_rate=1.0,
        )
        for number in range(_NUM_ITEMS)
    ]
    return SampleGroup(
        request_id=request_id,
        user_id=_NOBODY,
        schema_hash=spec.schema_hash,
        features_block=exposure_block.encode(features, spec.schema_hash),
        samples=samples,
    )
