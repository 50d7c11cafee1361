"""TrainerService: each RPC becomes one command for the worker's thread, or reads its status."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, TypeVar

from tunemesh.events.v1.control_pb2 import ControlRecord
from tunemesh.trainer.v1 import trainer_service_pb2 as pb
from tunemesh.trainer.v1 import trainer_service_pb2_grpc

from services.common.events.limits import check_text
from services.common.platform.clock import wall_ms
from services.common.platform.control import ControlState
from services.common.platform.errors import Conflict, CorruptArtifact, InvalidInput, NotFound, ServiceError, Unavailable
from services.trainer.accepted import Adapters, check_target
from services.trainer.checkpoints import Version
from services.trainer.neighbours import Fenced, HistoryLost
from services.trainer.owner import ControlOwner
from services.trainer.restore import RestoreRequest
from services.trainer.worker import RankerWorker

_MAX_NAME_BYTES = 256
_VERSION = re.compile(r"(\d{1,18})\.(-1|\d{1,18})", re.ASCII)

Result = TypeVar("Result")


class TrainerServicer(trainer_service_pb2_grpc.TrainerServiceServicer):
    """One method per RPC; see protos/tunemesh/trainer/v1. UNAVAILABLE until the worker has begun its epoch."""

    def __init__(self, *, model: str, schema_hash: str, adapters: Adapters) -> None:
        """Args: model and schema_hash of the feature spec; `adapters` tells what the adapter gate said of them."""
        self._model = model
        self._schema_hash = schema_hash
        self._adapters = adapters
        self._worker: RankerWorker | None = None
        self._owner: ControlOwner | None = None

    def attach(self, worker: RankerWorker, owner: ControlOwner) -> None:
        """Give it the worker, once that has begun; `owner` belongs to the worker's thread."""
        self._worker, self._owner = worker, owner

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:  # noqa: ARG002 - gRPC's signature
        """Return the newest snapshot."""
        status = self._running().status
        prequential = status.prequential
        return pb.GetStatusResponse(
            model=self._model,
            schema_hash=self._schema_hash,
            lineage_id=status.lineage_id,
            base_id=status.base_id,
            epoch=status.epoch,
            seq=status.seq,
            source_offsets=status.source_offsets,
            watermark_ms=status.watermark_ms,
            samples_trained=status.counters.samples_trained,
            duplicates_skipped=status.counters.duplicates_skipped,
            paused=status.paused,
            prequential_auc={task: quality.auc for task, quality in prequential.items()},
            prequential_log_loss={task: quality.log_loss for task, quality in prequential.items()},
            table_rows=dict(status.table_rows),
            last_checkpoint=status.last_checkpoint,
            publishing_refused=status.publishing_refused,
            passed_over=[
                pb.PassedOver(partition=part.partition, first_offset=part.first, end_offset=part.end) for part in status.passed_over
            ],
        )

    async def PauseLearning(self, request: pb.PauseLearningRequest, context: Any) -> pb.PauseLearningResponse:  # noqa: ARG002
        """Stop consuming samples."""
        await self._run(self._running().pause)
        return pb.PauseLearningResponse()

    async def ResumeLearning(self, request: pb.ResumeLearningRequest, context: Any) -> pb.ResumeLearningResponse:  # noqa: ARG002
        """Go on consuming samples."""
        await self._run(self._running().resume)
        return pb.ResumeLearningResponse()

    async def WriteCheckpoint(self, request: pb.WriteCheckpointRequest, context: Any) -> pb.WriteCheckpointResponse:  # noqa: ARG002
        """Write a checkpoint, durably."""
        written = await self._run(self._running().write_checkpoint)
        return pb.WriteCheckpointResponse(checkpoint=written.url, state_hash=written.state_hash, source_offsets=written.source_offsets)

    async def PublishBase(self, request: pb.PublishBaseRequest, context: Any) -> pb.PublishBaseResponse:  # noqa: ARG002
        """Publish a base."""
        base_id, uri = await self._run(self._running().publish_base)
        return pb.PublishBaseResponse(base_id=base_id, uri=uri)

    async def RestoreCheckpoint(self, request: pb.RestoreCheckpointRequest, context: Any) -> pb.RestoreCheckpointResponse:  # noqa: ARG002
        """Go back to an older checkpoint."""
        check_text("actor", request.actor, _MAX_NAME_BYTES, InvalidInput)
        not_after = _not_after(request)
        wanted = RestoreRequest(not_after=not_after, skip_later_samples=request.skip_later_samples, actor=request.actor)
        worker = self._running()
        done = await self._run(lambda: worker.restore(wanted))
        return pb.RestoreCheckpointResponse(
            checkpoint=done.url,
            checkpoint_created_at_ms=done.created_at_ms,
            epoch=done.epoch,
            source_offsets=done.source_offsets,
            skipped=done.skipped,
            checkpoint_version=str(done.version),
        )

    async def SetAlias(self, request: pb.SetAliasRequest, context: Any) -> pb.SetAliasResponse:  # noqa: ARG002
        """Move an alias, compare-and-set."""
        check_text("alias", request.alias, _MAX_NAME_BYTES, InvalidInput)
        check_text("target", request.target, _MAX_NAME_BYTES, InvalidInput)
        check_text("actor", request.actor, _MAX_NAME_BYTES, InvalidInput)
        owner = self._control()
        if not request.allow_unjudged:
            await self._check_target(request.alias, request.target)

        def decide(state: ControlState) -> ControlRecord:
            return state.alias_change(request.alias, request.target, request.expected_version, now_ms=wall_ms(), actor=request.actor)

        def check() -> ControlRecord:
            owner.sync()
            return decide(owner.state)

        record = await self._run(check if request.validate_only else lambda: owner.write(decide))
        return pb.SetAliasResponse(version=record.version)

    async def GetAlias(self, request: pb.GetAliasRequest, context: Any) -> pb.GetAliasResponse:  # noqa: ARG002
        """Return an alias as it is now, not as of the last poll."""
        check_text("alias", request.alias, _MAX_NAME_BYTES, InvalidInput)
        record = await self._alias(request.alias)
        return pb.GetAliasResponse(target=record.alias.target, version=record.version, previous_target=record.alias.previous_target)

    async def _check_target(self, alias: str, target: str) -> None:
        """Raise unless the alias may point at the target.

        A rollback does not need the artifact store: an adapter that answered before may answer again when its verdict cannot be read.
        """
        try:
            await asyncio.to_thread(check_target, alias, target, self._adapters)
        except Conflict as error:
            raise Conflict(f"{error}; set allow_unjudged to point {alias} at it all the same") from error
        except (ServiceError, CorruptArtifact) as error:
            if await self._previous_target(alias) == target:
                return
            if isinstance(error, CorruptArtifact):
                raise Conflict(str(error)) from error
            raise

    async def _previous_target(self, alias: str) -> str:
        try:
            return (await self._alias(alias)).alias.previous_target
        except NotFound:
            return ""

    async def _alias(self, alias: str) -> ControlRecord:
        owner = self._control()

        def read() -> ControlRecord:
            owner.sync()
            return owner.state.alias(alias)

        return await self._run(read)

    async def _run(self, command: Callable[[], Result]) -> Result:
        try:
            return await asyncio.wrap_future(self._running().submit(command))
        except (CorruptArtifact, Fenced, HistoryLost) as error:
            raise Conflict(str(error)) from error

    def _running(self) -> RankerWorker:
        if self._worker is None:
            raise Unavailable("the trainer has not begun its epoch yet: try again in a moment")
        return self._worker

    def _control(self) -> ControlOwner:
        self._running()
        assert self._owner is not None
        return self._owner


def _not_after(request: pb.RestoreCheckpointRequest) -> int | Version:
    if bool(request.not_after_ms) == bool(request.not_after_version):
        raise InvalidInput("not_after_ms or not_after_version is wanted, one of them")
    if request.not_after_version:
        match = _VERSION.fullmatch(request.not_after_version)
        if match is None:
            raise InvalidInput(f"not_after_version is {request.not_after_version[:40]!r}, EPOCH.SEQ is wanted, e.g. 3.1207")
        return Version(int(match[1]), int(match[2]))
    if request.not_after_ms < 0:
        raise InvalidInput(f"not_after_ms is {request.not_after_ms}, Unix milliseconds above 0 are wanted")
    return request.not_after_ms
