"""kill -9 of the trainer, again and again, on one sample log: weights and replicas end as if nothing had happened."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tunemesh.trainer.v1 import trainer_service_pb2 as pb

from services.common.platform.artifacts import read_artifact
from tests.trainer_fakes.sample_logs import sample_log
from tests.trainer_process import Topics, TrainerProcess, base_pointers, environment, follow, produce

pytestmark = [pytest.mark.integration, pytest.mark.ml, pytest.mark.timeout(900)]

# Small batches make many boundaries; quick checkpoints make each restart begin somewhere else.
QUICK = {"batch_groups": 2, "publish_interval_ms": 60, "checkpoint_interval_ms": 150, "dedup_window_samples": 20_000, "keep_bases": 50}


def learn_to_the_end(env: dict[str, str], ends: list[int]) -> pb.WriteCheckpointResponse:
    with TrainerProcess(env) as trainer:
        trainer.until(lambda status: list(status.source_offsets) == ends, timeout_s=120)
        stub = trainer.stub()
        assert stub is not None
        written: pb.WriteCheckpointResponse = stub.WriteCheckpoint(pb.WriteCheckpointRequest(), timeout=30)
        assert list(written.source_offsets) == ends
        assert trainer.terminate() == 0, trainer.log
    return written


def kill_somewhere(env: dict[str, str], threshold: int, source: random.Random) -> int:
    """Start, kill at about `threshold` records learned (0: while it starts), and return how far it had come."""
    with TrainerProcess(env) as trainer:
        if threshold == 0:
            time.sleep(source.uniform(1.5, 5.0))
        else:
            trainer.until(lambda status: sum(status.source_offsets) >= threshold)
            time.sleep(source.uniform(0.0, 0.2))
        status = trainer.status()
        trainer.kill()
    return sum(status.source_offsets) if status is not None else 0


@pytest.mark.parametrize(("num_kills", "num_while_starting"), [(2, 1), pytest.param(10, 3, marks=pytest.mark.deep)])
def test_weights_and_replicas_after_kills_equal_those_of_an_uninterrupted_run(
    kafka_bootstrap: str, topics: Callable[..., str], tmp_path: Path, num_kills: int, num_while_starting: int
) -> None:
    logs = sample_log(17, num_ticks=30, groups_per_tick=8)
    samples = topics("samples", partitions=2)
    ends = produce(kafka_bootstrap, samples, logs)
    whole, killed = Topics.create(topics, samples), Topics.create(topics, samples)
    expected = learn_to_the_end(environment(kafka_bootstrap, whole, tmp_path / "whole", 2, **QUICK), ends)

    env = environment(kafka_bootstrap, killed, tmp_path / "killed", 2, **QUICK)
    seed = time.time_ns() % 100_000
    source = random.Random(seed)
    while_starting = set(source.sample(range(num_kills), num_while_starting))
    marks = sorted(source.uniform(0.02, 0.95) for _ in range(num_kills))
    progress = [kill_somewhere(env, 0 if number in while_starting else int(mark * sum(ends)), source) for number, mark in enumerate(marks)]
    result = learn_to_the_end(env, ends)

    assert result.state_hash == expected.state_hash, f"seed {seed}: killed at {progress} of {sum(ends)} records"
    _, arrays = read_artifact(result.checkpoint, expect_schema_hash=None)
    bases = base_pointers(kafka_bootstrap, killed.bases)
    assert follow(kafka_bootstrap, killed, bases[0]).equals(arrays)
    assert follow(kafka_bootstrap, killed, bases[-1]).equals(arrays)
