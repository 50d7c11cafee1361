"""The updater as a process, against a real broker: bases and deltas of a real TrainerTable reach the mapped tables, whatever dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tunemesh.events.v1.control_pb2 import ControlRecord, Lineage
from tunemesh.events.v1.delta_pb2 import ROW_DTYPE_FP32, BasePointer, DeltaHeader, ReplicaStatus

from services.common.events.topics import CONTROL, RANKER_BASES, RANKER_DELTAS, REPLICAS
from services.common.platform.artifacts import Manifest, write_artifact
from services.common.platform.kafka import read_compacted
from services.common.platform.kafka_producer import durable_producer
from services.common.platform.telemetry_files import read_spans
from services.common.ranker.delta import DeltaBody, TableDelta, encode_body
from services.common.ranker.delta_chunks import chunk
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.tables.reader import ModelReader, TableNotReady
from services.mesh.runner.topics import mesh_topic_partitions
from services.trainer.trainer_table import Eviction, TrainerTable
from tests.limits import seconds

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[4]
SPEC = FeatureSpec.load(ROOT / "model_repo" / "ranker" / "feature_spec.yaml")
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
READY = re.compile(r"READY updater 127\.0\.0\.1:(\d+)")


class Trainer:
    """Two real tables and what publishes them."""

    def __init__(self, bootstrap: str, artifacts: Path) -> None:
        self._producer = durable_producer(bootstrap, client_id="test-trainer")
        self._artifacts = artifacts
        self.lineage = uuid.uuid4().hex
        self.epoch, self.seq, self.base_id, self.step, self.next_offset = 1, -1, "", 0, 0
        eviction = Eviction(steps_to_live=2)
        self.tables = {name: TrainerTable(name, dim, eviction=eviction, default_value=0.125) for name, dim in SPEC.table_dims.items()}
        record = ControlRecord(subject="lineage", version=1, lineage=Lineage(lineage_id=self.lineage))
        self._send(CONTROL.name, b"lineage", record.SerializeToString())

    def close(self) -> None:
        self._producer.close()

    def learn(self, num_ids: int = 3000) -> None:
        """Change some rows, make new ones, evict old ones."""
        self.step += 1
        for table in self.tables.values():
            ids = np.unique(np.random.default_rng(self.step).integers(-5000, 5000, num_ids))
            table.advance(self.step)
            slots = table.slots_for_update(ids)
            table.rows[slots] += np.float32(self.step)
            table.mark_touched(ids)
            table.evict(self.step)

    def publish_base(self) -> None:
        self.base_id = f"base-{self.epoch}-{self.seq}"
        arrays = {name: array for table in self.tables.values() for name, array in table.state_arrays().items()}
        arrays["dense/w"] = self._weights()
        identity = {"model": SPEC.model, "schema_hash": SPEC.schema_hash, "lineage_id": self.lineage, "epoch": self.epoch, "seq": self.seq}
        artifact = write_artifact(self._artifacts / self.base_id, Manifest(kind="base", **identity), arrays)
        pointer = BasePointer(
            **identity, base_id=self.base_id, uri=artifact.url, delta_offsets=[self.next_offset], manifest_crc32c=artifact.manifest_crc32c
        )
        self._send(RANKER_BASES.name, SPEC.model.encode(), pointer.SerializeToString())
        self._take_all()

    def publish(self) -> None:
        """Publish what changed, in several chunks."""
        tables = {name: TableDelta(taken.ids, taken.rows, taken.tombstones) for name, taken in self._take_all().items()}
        self.seq += 1
        header = DeltaHeader(
            model=SPEC.model,
            schema_hash=SPEC.schema_hash,
            lineage_id=self.lineage,
            epoch=self.epoch,
            seq=self.seq,
            prev_seq=self.seq - 1,
            base_id=self.base_id,
            watermark_ms=self.step,
            dtype=ROW_DTYPE_FP32,
        )
        body = encode_body(DeltaBody(tables, {"w": self._weights()}), ROW_DTYPE_FP32)
        headers = [("traceparent", f"00-{TRACE_ID}-b7ad6b7169203331-01".encode())]
        records = [record.SerializeToString() for record in chunk(header, body, max_bytes=100_000)]
        # In one batch, as the trainer sends them.
        futures = [self._producer.send(RANKER_DELTAS.name, key=b"0", value=record, headers=headers, partition=0) for record in records]
        self.next_offset = futures[-1].get(seconds(10)).offset + 1

    def _weights(self) -> np.ndarray:
        return np.full((4, 5), self.step, np.float32)

    def _take_all(self):
        taken = {name: table.take_touched() for name, table in self.tables.items()}
        for name, table in self.tables.items():
            table.ack_touched(taken[name].token)
        return taken

    def _send(self, topic: str, key: bytes, value: bytes, headers=()) -> int:
        return self._producer.send(topic, key=key, value=value, headers=list(headers), partition=0).get(seconds(10)).offset


class UpdaterProcess:
    """`python -m services.recommender.updater` with its log in a file."""

    def __init__(self, folder: Path, bootstrap: str, **variables: str) -> None:
        self._log = folder / f"updater-{uuid.uuid4().hex[:6]}.log"
        settings = {
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "TUNEMESH_TABLES_DIR": str(folder / "tables"),
            "TUNEMESH_TELEMETRY_DIR": str(folder / "telemetry"),
            "TUNEMESH_UPDATER_PORT": "0",
            "TUNEMESH_UPDATER_REPLICA_ID": "test-replica",
            "TUNEMESH_UPDATER_REPORT_INTERVAL_MS": "100",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'protos' / 'gen'}",
        }
        with self._log.open("w") as log:
            command = [sys.executable, "-m", "services.recommender.updater"]
            self.process = subprocess.Popen(command, cwd=ROOT, env=os.environ | settings | variables, stderr=log)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def health(self) -> int:
        eventually(lambda: READY.search(self.log) is not None, self)
        with grpc.insecure_channel(f"127.0.0.1:{READY.search(self.log)[1]}") as channel:
            request = health_pb2.HealthCheckRequest(service="tunemesh.updater")
            return health_pb2_grpc.HealthStub(channel).Check(request, timeout=seconds(5)).status

    def kill(self) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


def eventually(condition: Callable[[], bool], updater: UpdaterProcess, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + seconds(timeout_s)
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to that in {timeout_s} s; the updater's log:\n{updater.log}"
        time.sleep(0.05)


def has_what_was_learned(tables: Path, trainer: Trainer) -> bool:
    """Whether a reader sees exactly the trainer's rows, default row and weights."""
    try:
        reader = ModelReader(tables, SPEC.schema_hash)
    except TableNotReady:
        return False
    at = reader.status()
    if (at.epoch, at.seq, reader.dense().tensors["w"][0, 0]) != (trainer.epoch, trainer.seq, trainer.step):
        return False
    for name, table in trainer.tables.items():
        ids, rows = reader.iter_rows(name)
        np.testing.assert_array_equal(ids, table.ids())
        np.testing.assert_array_equal(rows, table.lookup(ids))
        unknown = reader.read({name: np.array([10**12])})
        np.testing.assert_array_equal(unknown.rows[name], table.lookup(np.array([10**12])))
    return True


@pytest.fixture
def trainer(fresh_broker, mesh_topics, tmp_path) -> Iterator[Trainer]:
    mesh_topics(fresh_broker.bootstrap)
    trainer = Trainer(fresh_broker.bootstrap, tmp_path / "artifacts")
    yield trainer
    trainer.close()


@pytest.fixture
def start(fresh_broker, tmp_path) -> Iterator[Callable[..., UpdaterProcess]]:
    started: list[UpdaterProcess] = []

    def run(**variables: str) -> UpdaterProcess:
        started.append(UpdaterProcess(tmp_path, fresh_broker.bootstrap, **variables))
        return started[-1]

    yield run
    for updater in started:
        updater.kill()


def test_what_the_trainer_learns_reaches_the_mapped_tables(trainer, start, fresh_broker, tmp_path):
    updater = start()
    assert updater.health() == health_pb2.HealthCheckResponse.NOT_SERVING
    trainer.learn()
    trainer.publish_base()
    for _ in range(3):
        trainer.learn()
        trainer.publish()
    eventually(lambda: has_what_was_learned(tmp_path / "tables", trainer), updater)
    assert updater.health() == health_pb2.HealthCheckResponse.SERVING

    def reported() -> ReplicaStatus:
        record = read_compacted(fresh_broker.bootstrap, REPLICAS.name, client_id="test").get(b"test-replica")
        return ReplicaStatus.FromString(record.value) if record else ReplicaStatus()

    eventually(lambda: reported().seq == trainer.seq, updater)
    status = reported()
    assert (status.model, status.base_id, status.epoch, status.watermark_ms) == (SPEC.model, trainer.base_id, 1, trainer.step)
    assert list(status.delta_offsets) == [trainer.next_offset]
    updater.process.terminate()
    assert updater.process.wait(seconds(15)) == 0
    applications = [span for span in read_spans(tmp_path / "telemetry") if span["name"] == "delta.apply"]
    assert [span["attributes"]["seq"] for span in applications] == [0, 1, 2]
    assert all(span["links"][0]["trace_id"] == TRACE_ID for span in applications)


def test_what_cannot_be_read_is_left_out_and_a_gap_is_asked_about_until_a_base_closes_it(trainer, start, fresh_broker, tmp_path):
    for topic in (CONTROL.name, RANKER_BASES.name, RANKER_DELTAS.name):
        trainer.next_offset = trainer._send(topic, b"lineage", b"\xff\xff") + 1
    updater = start()
    trainer.learn()
    trainer.publish_base()
    nowhere = BasePointer(
        model=SPEC.model, schema_hash=SPEC.schema_hash, lineage_id=trainer.lineage, epoch=1, seq=0, base_id="b", uri="nosuch://bases/b"
    )
    nowhere.delta_offsets.append(trainer.next_offset)
    trainer.learn()
    trainer.publish()
    eventually(lambda: has_what_was_learned(tmp_path / "tables", trainer), updater)
    trainer.learn()
    trainer._take_all()
    trainer.seq += 1
    trainer._send(RANKER_BASES.name, SPEC.model.encode(), nowhere.SerializeToString())
    trainer.learn()
    trainer.publish()

    def reported() -> ReplicaStatus:
        record = read_compacted(fresh_broker.bootstrap, REPLICAS.name, client_id="test").get(b"test-replica")
        return ReplicaStatus.FromString(record.value) if record else ReplicaStatus()

    eventually(lambda: "a delta is missing" in reported().blocked and reported().newest_base_id == "b", updater)
    asking = reported()
    assert (asking.schema_hash, asking.epoch, asking.seq) == (SPEC.schema_hash, 1, 0)
    trainer.publish_base()
    eventually(lambda: has_what_was_learned(tmp_path / "tables", trainer) and not reported().blocked, updater)
    assert "Traceback" not in updater.log


def test_an_updater_killed_at_any_moment_catches_up(trainer, start, tmp_path):
    trainer.learn()
    trainer.publish_base()
    for delay_s in (0.0, 0.1, 0.3):
        updater = start()
        for _ in range(10):
            trainer.learn(500)
            trainer.publish()
        eventually((tmp_path / "tables" / "CURRENT").exists, updater)
        time.sleep(delay_s)
        updater.kill()
    updater = start()
    trainer.learn()
    trainer.publish()
    eventually(lambda: has_what_was_learned(tmp_path / "tables", trainer), updater)


def test_a_broker_that_lost_its_data_is_noticed_and_its_new_history_followed(trainer, start, fresh_broker, tmp_path):
    if fresh_broker.is_durable:
        pytest.skip("needs a broker that loses its data: run without TUNEMESH_TEST_BROKER=kafka")
    trainer.learn()
    trainer.publish_base()
    trainer.learn()
    trainer.publish()
    updater = start()
    eventually(lambda: has_what_was_learned(tmp_path / "tables", trainer), updater)
    trainer.close()  # its producer asks for the topics too
    fresh_broker.restart_with_topics(mesh_topic_partitions(user_partitions=2), clients=[updater.process.pid])
    eventually(lambda: re.search(r"out of range|waiting for a base of the new history", updater.log) is not None, updater)
    assert has_what_was_learned(tmp_path / "tables", trainer)
    successor = Trainer(fresh_broker.bootstrap, tmp_path / "artifacts-2")
    successor.epoch = 2
    try:
        successor.learn(100)
        successor.publish_base()
        successor.learn(100)
        successor.publish()
        eventually(lambda: has_what_was_learned(tmp_path / "tables", successor), updater)
    finally:
        successor.close()


def test_wrong_configuration_ends_with_one_line_and_code_2(start, tmp_path):
    first = start()
    assert first.health() == health_pb2.HealthCheckResponse.NOT_SERVING
    port = READY.search(first.log)[1]
    for variables, words in [
        ({}, "another process writes the tables"),
        ({"TUNEMESH_TABLES_DIR": str(tmp_path / "other"), "TUNEMESH_UPDATER_PORT": port}, "TUNEMESH_UPDATER_PORT"),
        ({"TUNEMESH_FEATURE_SPEC": str(tmp_path / "absent.yaml")}, "absent.yaml"),
    ]:
        updater = start(**variables)
        assert updater.process.wait(seconds(60)) == 2
        (line,) = [line for line in updater.log.splitlines() if line.startswith("configuration error")]
        assert words in line
        assert "Traceback" not in updater.log
