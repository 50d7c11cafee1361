"""The trainer as a process: what it learns, publishes, records and leaves behind; how it refuses to start."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tunemesh.trainer.v1 import trainer_service_pb2 as pb

from services.common.platform.artifacts import read_artifact
from services.common.platform.telemetry_files import read_spans
from services.mesh.runner.topics import create_topics
from services.trainer.kafka_logs import KafkaDeltaLog
from tests.limits import seconds
from tests.trainer_fakes.sample_logs import sample_log
from tests.trainer_process import Topics, TrainerProcess, base_pointers, environment, follow, produce

if TYPE_CHECKING:
    from tests.conftest import Broker

pytestmark = [pytest.mark.integration, pytest.mark.ml, pytest.mark.timeout(300)]

NewTopics = Callable[..., str]
TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_samples_become_deltas_that_a_replica_can_follow_and_a_trace_leads_from_one_to_the_other(
    kafka_bootstrap: str, topics: NewTopics, tmp_path: Path
) -> None:
    mine = Topics.create(topics, topics("samples", partitions=2))
    ends = produce(kafka_bootstrap, mine.samples, sample_log(1), traceparent=f"00-{TRACE_ID}-{SPAN_ID}-01")
    with TrainerProcess(environment(kafka_bootstrap, mine, tmp_path, 2, publish_interval_ms=100)) as trainer:
        status = trainer.until(lambda status: list(status.source_offsets) == ends and bool(status.prequential_auc))
        assert set(status.prequential_auc) == set(status.prequential_log_loss) == {"interact", "like"}
        assert status.watermark_ms == 115_000
        assert status.duplicates_skipped > 0
        stub = trainer.stub()
        assert stub is not None
        written = stub.WriteCheckpoint(pb.WriteCheckpointRequest(), timeout=seconds(30))
        assert trainer.terminate() == 0, trainer.log
    (base,) = base_pointers(kafka_bootstrap, mine.bases)
    replica = follow(kafka_bootstrap, mine, base)
    assert replica.equals(read_artifact(written.checkpoint, expect_schema_hash=None)[1])
    assert replica.watermark_ms == status.watermark_ms

    spans = read_spans(tmp_path / "telemetry")
    steps = [span for span in spans if span["name"] == "trainer.step"]
    assert {"trace_id": TRACE_ID, "span_id": SPAN_ID} in steps[0]["links"]
    publishes = [span for span in spans if span["name"] == "trainer.publish_delta"]
    linked = {link["span_id"] for span in publishes for link in span["links"]}
    assert {span["span_id"] for span in steps} & linked
    log = KafkaDeltaLog(kafka_bootstrap, mine.deltas, 0, producer=None)
    assert any(not record.header.heartbeat for record in log.read(*log.range()))


def test_a_restart_continues_and_a_fresh_trainer_fences_the_old_one(kafka_bootstrap: str, topics: NewTopics, tmp_path: Path) -> None:
    mine = Topics.create(topics, topics("samples", partitions=2))
    ends = produce(kafka_bootstrap, mine.samples, sample_log(2))
    env = environment(kafka_bootstrap, mine, tmp_path, 2, publish_interval_ms=100)
    with TrainerProcess(env) as old:
        before = old.until(lambda status: list(status.source_offsets) == ends)
        with TrainerProcess(env) as new:
            assert old.wait() == 1
            assert "epoch 2 of ranker was claimed" in old.lines[-2] + old.lines[-1]
            after = new.until(lambda status: list(status.source_offsets) == ends)
    assert (before.epoch, after.epoch) == (1, 2)
    assert after.lineage_id == before.lineage_id
    assert dict(after.table_rows) == dict(before.table_rows)


def test_a_retrain_ends_like_an_uninterrupted_run_and_a_rollback_takes_replicas_back(
    kafka_bootstrap: str, topics: NewTopics, tmp_path: Path
) -> None:
    mine = Topics.create(topics, topics("samples", partitions=2))
    logs = sample_log(4)
    halves = [[log[: len(log) // 2] for log in logs], [log[len(log) // 2 :] for log in logs]]
    produce(kafka_bootstrap, mine.samples, halves[0])
    with TrainerProcess(environment(kafka_bootstrap, mine, tmp_path, 2, publish_interval_ms=100, history_interval_ms=1)) as trainer:
        trainer.until(lambda status: status.samples_trained > 20)
        stub = trainer.stub()
        assert stub is not None
        stub.PauseLearning(pb.PauseLearningRequest(), timeout=seconds(30))
        then = stub.WriteCheckpoint(pb.WriteCheckpointRequest(), timeout=seconds(30))
        then_ms = time.time_ns() // 1_000_000
        stub.ResumeLearning(pb.ResumeLearningRequest(), timeout=seconds(30))
        ends = produce(kafka_bootstrap, mine.samples, halves[1])
        trainer.until(lambda status: list(status.source_offsets) == ends)
        whole = stub.WriteCheckpoint(pb.WriteCheckpointRequest(), timeout=seconds(30))
        assert whole.state_hash != then.state_hash

        retrain = pb.RestoreCheckpointRequest(not_after_ms=then_ms, skip_later_samples=False, actor="ann")
        restored = stub.RestoreCheckpoint(retrain, timeout=seconds(60))
        assert (restored.checkpoint, restored.epoch, list(restored.skipped)) == (then.checkpoint, 2, [0, 0])
        assert list(restored.source_offsets) == list(then.source_offsets)
        trainer.until(lambda status: list(status.source_offsets) == ends)
        assert stub.WriteCheckpoint(pb.WriteCheckpointRequest(), timeout=seconds(30)).state_hash == whole.state_hash

        rollback = pb.RestoreCheckpointRequest(not_after_ms=then_ms, skip_later_samples=True, actor="ann")
        restored = stub.RestoreCheckpoint(rollback, timeout=seconds(60))
        assert (restored.checkpoint, restored.epoch, list(restored.source_offsets)) == (then.checkpoint, 3, ends)
        assert [end - skipped for end, skipped in zip(ends, restored.skipped, strict=True)] == list(then.source_offsets)
        assert stub.WriteCheckpoint(pb.WriteCheckpointRequest(), timeout=seconds(30)).state_hash == then.state_hash
        assert trainer.terminate() == 0, trainer.log
    bases = base_pointers(kafka_bootstrap, mine.bases)
    assert len(bases) == 1, "deltas lead back: replicas load no base"
    assert follow(kafka_bootstrap, mine, bases[0]).equals(read_artifact(then.checkpoint, expect_schema_hash=None)[1])
    log = KafkaDeltaLog(kafka_bootstrap, mine.deltas, 0, producer=None)
    counted = [record.header for record in log.read(*log.range())]
    assert sum(header.samples_trained for header in counted) > 20
    assert all(header.gradient_norm > 0 for header in counted if header.samples_trained)


def test_health_says_serving_only_once_replicas_have_a_base(kafka_bootstrap: str, topics: NewTopics, tmp_path: Path) -> None:
    mine = Topics.create(topics, topics("samples", partitions=1))
    with TrainerProcess(environment(kafka_bootstrap, mine, tmp_path, 1)) as trainer:
        deadline = time.monotonic() + seconds(60)
        while trainer.port == 0:
            assert time.monotonic() < deadline, trainer.log
            time.sleep(0.01)
        with grpc.insecure_channel(f"127.0.0.1:{trainer.port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service="tunemesh.trainer.v1.TrainerService")
            answers = [health.Check(request, wait_for_ready=True, timeout=seconds(10)).status]
            while answers[-1] != health_pb2.HealthCheckResponse.SERVING:
                assert time.monotonic() < deadline, trainer.log
                assert not base_pointers(kafka_bootstrap, mine.bases) or len(answers) < 2_000
                answers.append(health.Check(request, timeout=seconds(10)).status)
        assert answers[0] == health_pb2.HealthCheckResponse.NOT_SERVING
        assert base_pointers(kafka_bootstrap, mine.bases)


def test_a_wrong_start_is_one_line_and_exit_code_2(kafka_bootstrap: str, topics: NewTopics, tmp_path: Path) -> None:
    mine = Topics.create(topics, topics("samples", partitions=2))

    def refused(**settings: object) -> str:
        with TrainerProcess(environment(kafka_bootstrap, mine, tmp_path, 2, **settings)) as trainer:
            assert trainer.wait() == 2, trainer.log
            assert "Traceback" not in trainer.log
            return trainer.lines[-1]

    with TrainerProcess(environment(kafka_bootstrap, mine, tmp_path / "other", 2)) as other:
        other.until(lambda status: True)
        assert "TUNEMESH_TRAINER_PORT" in refused(port=other.port)
    assert "TUNEMESH_TRAINER_BATCH_GROUPS=0" in refused(batch_groups=0)
    assert "TUNEMESH_TRAINER_BATCH_GRUPS names no setting" in refused(batch_grups=8)
    # The other trainer's lineage and epoch are on this broker, its checkpoints are elsewhere.
    assert "holds no checkpoint; to keep the weights" in refused()
    lost = Topics.create(topics, mine.samples)
    with TrainerProcess(environment(kafka_bootstrap, lost, tmp_path / "other", 2)) as trainer:
        assert trainer.wait() == 2, trainer.log
        assert "the broker has no lineage" in trainer.lines[-1]
        assert "TUNEMESH_TRAINER_ON_LINEAGE_CHANGE=adopt" in trainer.lines[-1]
    missing = Topics.create(topics, mine.samples)
    env = environment(kafka_bootstrap, missing, tmp_path / "third", 2, initial_base=tmp_path / "no-base")
    with TrainerProcess(env) as trainer:
        assert trainer.wait() == 2, trainer.log
        assert "TUNEMESH_TRAINER_INITIAL_BASE" in trainer.lines[-1] and "no READY artifact" in trainer.lines[-1]


def test_a_broker_that_lost_its_data_stops_the_trainer_and_is_refused_by_the_next(fresh_broker: Broker, tmp_path: Path) -> None:
    mine = Topics("samples", "control", "deltas", "bases", "dlq", "replicas")
    partitions = {"samples": 2, "control": 1, "deltas": 1, "bases": 1, "dlq": 1}
    create_topics(fresh_broker.bootstrap, partitions)
    ends = produce(fresh_broker.bootstrap, "samples", sample_log(3))
    env = environment(fresh_broker.bootstrap, mine, tmp_path, 2, publish_interval_ms=100, checkpoint_interval_ms=100)
    with TrainerProcess(env) as trainer:
        trainer.until(lambda status: list(status.source_offsets) == ends and status.last_checkpoint != "")
        fresh_broker.restart_with_topics(partitions, clients=[trainer.pid])
        if fresh_broker.is_durable:
            return
        assert trainer.wait(120) == 1, trainer.log
        assert "the trainer stops" in trainer.log
    with TrainerProcess(env) as trainer:
        assert trainer.wait() == 2, trainer.log
        assert "the broker has no lineage" in trainer.lines[-1]
    with TrainerProcess({**env, "TUNEMESH_TRAINER_ON_LINEAGE_CHANGE": "adopt"}) as trainer:
        status = trainer.until(lambda status: True)
        assert (list(status.source_offsets), status.epoch) == ([0, 0], 2)
        assert status.table_rows["user"] > 0


def test_without_a_broker_the_trainer_ends_with_one_line_and_code_1(tmp_path: Path) -> None:
    nowhere = Topics("samples", "control", "deltas", "bases", "dlq", "replicas")
    with TrainerProcess(environment("127.0.0.1:1", nowhere, tmp_path, 2)) as trainer:
        assert trainer.wait(90) == 1, trainer.log
        assert "Traceback" not in trainer.log
        assert "no Kafka broker at 127.0.0.1:1" in trainer.log
