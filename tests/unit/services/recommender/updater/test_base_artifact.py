"""From the announcement of a base to its tables: what others wrote is read, or refused with one of the parser's errors."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from tunemesh.events.v1.delta_pb2 import BasePointer

from services.common.events.envelope import MalformedRecord, parse_value
from services.common.platform.artifacts import Manifest, write_artifact
from services.common.platform.errors import CorruptArtifact, NotFound, Unavailable
from services.recommender.updater.base_artifact import load_base
from services.recommender.updater.core import Follower, Identity
from tests.fuzzing import Damage

ARRAYS = {
    "table/user/ids": np.array([3, 5]),
    "table/user/rows": np.ones((2, 2), np.float32),
    "table/user/default_row": np.zeros(2, np.float32),
    "dense/w": np.ones(3, np.float32),
}


def write_base(arrays=ARRAYS, **fields) -> BasePointer:
    manifest = Manifest(kind="base", model="ranker", schema_hash="s", lineage_id="l1", epoch=1, seq=4)
    artifact = write_artifact(f"memory://{uuid.uuid4().hex}/base-1", manifest, arrays)
    values = {
        "model": "ranker",
        "base_id": "base-1",
        "uri": artifact.url,
        "schema_hash": "s",
        "lineage_id": "l1",
        "epoch": 1,
        "seq": 4,
        "delta_offsets": [7],
        "manifest_crc32c": artifact.manifest_crc32c,
    }
    return BasePointer(**values | fields)


def test_a_base_is_loaded():
    base = load_base(write_base())
    assert (base.applied.epoch, base.applied.seq, base.applied.delta_offset) == (1, 4, 7)
    assert base.tables["user"].ids.tolist() == [3, 5]


@pytest.mark.parametrize("uri", ["nosuch://bases/1", "/nowhere/\0/base", "x" * 5000, "http://[", "zip://a::nosuch://b", ""])
def test_a_pointer_that_leads_nowhere_is_answered_with_not_found(uri):
    with pytest.raises(NotFound):
        load_base(write_base(uri=uri))


def test_a_base_without_tables_is_refused():
    with pytest.raises(CorruptArtifact, match="holds no table"):
        load_base(write_base({"dense/w": np.ones(3, np.float32)}))


def read_damaged_pointers(num_inputs: int, *, seed: int) -> int:
    """Announce and load damaged pointers; return how many could be loaded."""
    right = [pointer.SerializeToString() for pointer in (write_base(), write_base(uri="file:///nowhere/base-1"), write_base(seq=3))]
    damage, num_loaded = Damage(seed), 0
    for _ in range(num_inputs):
        value = damage.of_bytes(right)
        follower = Follower(Identity(model="ranker", schema_hash="s"))
        follower.begin("l1", None)
        try:
            follower.announce(parse_value(value, None, BasePointer))
            pointer = follower.base_to_load()
            if pointer is not None:
                load_base(pointer)
                num_loaded += 1
        except (MalformedRecord, NotFound, CorruptArtifact, Unavailable):
            continue
    return num_loaded


def test_damaged_pointers_are_loaded_or_refused():
    assert read_damaged_pointers(1_000, seed=3) < 1_000
