"""A trainer and an updater as processes on a real broker, whose log of deltas is spoiled: the updater asks, a base is the answer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tunemesh.events.v1.delta_pb2 import Delta, DeltaHeader, ReplicaStatus
from tunemesh.trainer.v1 import trainer_service_pb2 as pb

from services.common.events import topics
from services.common.platform.artifacts import read_artifact
from services.common.platform.kafka import read_compacted
from services.common.platform.kafka_producer import durable_producer
from services.common.ranker.delta_chunks import chunk
from services.common.ranker.tables.reader import ModelReader, TableNotReady
from tests.limits import seconds
from tests.trainer_fakes.sample_logs import SPEC, sample_log
from tests.trainer_process import REPOSITORY, Topics, TrainerProcess, base_pointers, environment, produce

if TYPE_CHECKING:
    from tests.conftest import Broker

pytestmark = [pytest.mark.integration, pytest.mark.ml, pytest.mark.deep, pytest.mark.timeout(900)]

MESH = Topics(
    topics.SAMPLES.name,
    topics.CONTROL.name,
    topics.RANKER_DELTAS.name,
    topics.RANKER_BASES.name,
    topics.SAMPLES.dlq,
    topics.REPLICAS.name,
)
NUM_GAPS = 3


def eventually(condition: Callable[[], bool], what: str) -> float:
    """Wait until it is so; return the seconds waited."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds(120), f"{what}: waited 120 s in vain"
        time.sleep(0.1)
    return time.monotonic() - began


def reported(bootstrap: str) -> ReplicaStatus:
    record = read_compacted(bootstrap, topics.REPLICAS.name, client_id="test").get(b"host")
    return ReplicaStatus.FromString(record.value) if record is not None else ReplicaStatus()


def spoil(bootstrap: str, status: pb.GetStatusResponse) -> None:
    """Write a record that is no delta, and one that follows a delta which nobody has."""
    header = DeltaHeader(
        model=SPEC.model,
        schema_hash=SPEC.schema_hash,
        lineage_id=status.lineage_id,
        epoch=status.epoch,
        seq=status.seq + 1_000,
        prev_seq=status.seq + 3,
        base_id=status.base_id,
        heartbeat=True,
    )
    (ahead,) = chunk(header, b"")
    producer = durable_producer(bootstrap, client_id="test")
    for value in (b"\xff no delta", Delta(chunk_count=1).SerializeToString(), ahead.SerializeToString()):
        producer.send(topics.RANKER_DELTAS.name, key=b"0", value=value, partition=0).get(seconds(10))
    producer.close()


def has_rows_of(tables: Path, uri: str) -> bool:
    """Whether a reader sees just the rows of a base."""
    _, arrays = read_artifact(uri, expect_schema_hash=SPEC.schema_hash)
    try:
        reader = ModelReader(tables, SPEC.schema_hash)
    except TableNotReady:
        return False
    for name in SPEC.table_dims:
        ids, rows = reader.iter_rows(name)
        order = np.argsort(arrays[f"table/{name}/ids"])
        if not np.array_equal(ids, arrays[f"table/{name}/ids"][order]) or not np.array_equal(rows, arrays[f"table/{name}/rows"][order]):
            return False
    return True


def test_an_updater_that_cannot_go_on_asks_the_trainer_and_is_answered(
    fresh_broker: Broker, mesh_topics: Callable[..., None], tmp_path: Path
) -> None:
    bootstrap, tables = fresh_broker.bootstrap, tmp_path / "tables"
    mesh_topics(bootstrap)
    ends = produce(bootstrap, MESH.samples, sample_log(1))
    variables = {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
        "TUNEMESH_TABLES_DIR": str(tables),
        "TUNEMESH_TELEMETRY_DIR": str(tmp_path / "telemetry"),
        "TUNEMESH_UPDATER_PORT": "0",
        "TUNEMESH_UPDATER_REPLICA_ID": "host",
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'protos' / 'gen'}",
    }
    settings = environment(bootstrap, MESH, tmp_path, 2, delta_dtype="int8")
    with (tmp_path / "updater.log").open("w") as log, TrainerProcess(settings) as trainer:
        command = [sys.executable, "-m", "services.recommender.updater"]
        updater = subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | variables, stderr=log)
        try:
            trainer.until(lambda status: list(status.source_offsets) == ends)
            stub = trainer.stub()
            assert stub is not None
            for gap in range(NUM_GAPS):
                eventually(lambda: not reported(bootstrap).blocked and reported(bootstrap).epoch > 0, "following")
                num_bases = len(base_pointers(bootstrap, MESH.bases))
                spoil(bootstrap, trainer.until(lambda _: True))
                # Nothing but a replica that asks makes a base within ten minutes.
                asked_s = eventually(lambda num=num_bases: len(base_pointers(bootstrap, MESH.bases)) > num, f"answering gap {gap}")
                healed_s = asked_s + eventually(lambda: not reported(bootstrap).blocked, f"healing gap {gap}")
                print(f"gap {gap} healed after {healed_s:.1f} s")
            # Whoever followed from those bases has the rows of one that is cut now.
            base = stub.PublishBase(pb.PublishBaseRequest(), timeout=seconds(60))
            seq = trainer.until(lambda _: True).seq
            eventually(lambda: reported(bootstrap).seq >= seq, "following to the last base")
            assert has_rows_of(tables, base.uri)
            assert updater.poll() is None and trainer.is_alive
        finally:
            updater.terminate()
            updater.wait(seconds(30))
