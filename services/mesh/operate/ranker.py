"""The learners' controls: pause, resume, and going back to an earlier checkpoint. Knows no terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from tunemesh.events.v1.delta_pb2 import ReplicaStatus
from tunemesh.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc, tuner_service_pb2, tuner_service_pb2_grpc

from services.common.events.envelope import MalformedRecord, parse_value
from services.common.events.topics import REPLICAS
from services.common.platform.clock import wall_ms
from services.common.platform.errors import Unavailable
from services.mesh.operate.log_scan import LogScanner
from services.mesh.operate.rpc import Client

_POLL_S = 0.2
# A replica reports every second; one that has been silent for so long is gone and is not waited for.
_REPLICA_SILENCE_MS = 15_000


@dataclass(frozen=True, slots=True)
class Learner:
    """How the learner stands: whether it learns, its version, and why the publish gate refused its last delta (empty: it did not)."""

    is_paused: bool
    version: str
    samples_trained: int
    publishing_refused: str


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the tuner stands: it follows the learner's pause; a tune that runs goes on (empty: none runs)."""

    is_paused: bool
    running_tune_id: str


@dataclass(frozen=True, slots=True)
class Restored:
    """What the learner went back to: checkpoint, its version, when it was written, the new epoch, and samples passed over, by partition."""

    checkpoint: str
    version: str
    created_at_ms: int
    epoch: int
    source_offsets: tuple[int, ...]
    skipped: tuple[int, ...]
    restored_at_s: float


def status(trainer: Client, *, timeout_ms: int) -> trainer_service_pb2.GetStatusResponse:
    """Return the trainer's status; see Client.call for its errors."""
    stub = trainer_service_pb2_grpc.TrainerServiceStub(trainer.channel)  # type: ignore[no-untyped-call]
    request = trainer_service_pb2.GetStatusRequest()
    answer: trainer_service_pb2.GetStatusResponse = trainer.call(stub.GetStatus, request, timeout_ms=timeout_ms)
    return answer


def set_paused(trainer: Client, is_paused: bool, *, timeout_ms: int) -> Learner:
    """Pause or resume learning, and return how the learner stands then. Harmless when it stands so already."""
    stub = trainer_service_pb2_grpc.TrainerServiceStub(trainer.channel)  # type: ignore[no-untyped-call]
    if is_paused:
        trainer.call(stub.PauseLearning, trainer_service_pb2.PauseLearningRequest(), timeout_ms=timeout_ms)
    else:
        trainer.call(stub.ResumeLearning, trainer_service_pb2.ResumeLearningRequest(), timeout_ms=timeout_ms)
    now = status(trainer, timeout_ms=timeout_ms)
    return Learner(now.paused, f"{now.epoch}.{now.seq}", now.samples_trained, now.publishing_refused)


def tuning(tuner: Client, *, timeout_ms: int) -> Tuning:
    """Return how the tuner stands; see Client.call for its errors."""
    stub = tuner_service_pb2_grpc.TunerServiceStub(tuner.channel)  # type: ignore[no-untyped-call]
    now = tuner.call(stub.GetTunerStatus, tuner_service_pb2.GetTunerStatusRequest(), timeout_ms=timeout_ms)
    return Tuning(now.paused, now.running_tune_id)


def restore(trainer: Client, not_after: int | str, *, skip_later: bool, actor: str, timeout_ms: int) -> Restored:
    """Go back to a checkpoint; then pass over the later samples, or learn them again.

    Args:
        trainer: the control API.
        not_after: the newest checkpoint written at or before this moment, Unix milliseconds, or holding nothing newer than this version,
            "EPOCH.SEQ".
        skip_later: pass over them.
        actor: who asks.
        timeout_ms: of the call.
    Raises:
        NotFound: nothing that old is kept; the message says what is.
        Unavailable: the trainer does not answer.
    """
    stub = trainer_service_pb2_grpc.TrainerServiceStub(trainer.channel)  # type: ignore[no-untyped-call]
    request = trainer_service_pb2.RestoreCheckpointRequest(skip_later_samples=skip_later, actor=actor)
    if isinstance(not_after, str):
        request.not_after_version = not_after
    else:
        request.not_after_ms = not_after
    answer = trainer.call(stub.RestoreCheckpoint, request, timeout_ms=timeout_ms)
    return Restored(
        answer.checkpoint,
        answer.checkpoint_version,
        answer.checkpoint_created_at_ms,
        answer.epoch,
        tuple(answer.source_offsets),
        tuple(answer.skipped),
        time.monotonic(),
    )


def wait_for_replicas(scanner: LogScanner, epoch: int, since_s: float, *, wait_ms: int) -> tuple[float, list[str]]:
    """Return (seconds since `since_s`, names of the replicas) when every replica that reports has taken the epoch up.

    Raises:
        Unavailable: one has not within `wait_ms`, none reports, or the broker is down. The restored epoch stands all the same.
    """
    while True:
        replicas = _replicas(scanner)
        behind = sorted(f"{each.replica_id} ({each.epoch}.{each.seq})" for each in replicas if each.epoch < epoch)
        waited_s = time.monotonic() - since_s
        if replicas and not behind:
            return waited_s, sorted(each.replica_id for each in replicas)
        if waited_s > wait_ms / 1e3:
            what = f"these have not taken it up: {', '.join(behind)}" if behind else f"no replica reports on {REPLICAS.name}"
            raise Unavailable(f"the ranker is at epoch {epoch} since {waited_s:.1f} s, but {what}")
        time.sleep(_POLL_S)


def _replicas(scanner: LogScanner) -> list[ReplicaStatus]:
    """Return what the living replicas last said."""

    def said(record: Any) -> ReplicaStatus | None:
        try:
            return parse_value(record.value, record.headers, ReplicaStatus)
        except MalformedRecord:
            return None

    since_ms = wall_ms() - _REPLICA_SILENCE_MS
    reports = scanner.scan(REPLICAS.name, said, since_ms=since_ms).found
    newest = {report.replica_id: report for report in reports if report.reported_at_ms >= since_ms}
    return list(newest.values())
