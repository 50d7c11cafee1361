"""TunerService: proto -> domain, one call of the core, domain -> proto."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunemesh.trainer.v1 import tuner_service_pb2 as pb
from tunemesh.trainer.v1 import tuner_service_pb2_grpc

from services.common.language.aliases import BASE_MODEL, llm_alias
from services.common.platform.settings import process_redactor
from services.tuner.tuner import Tuner


class TunerServicer(tuner_service_pb2_grpc.TunerServiceServicer):
    """One method per RPC; see protos/tunemesh/trainer/v1."""

    def __init__(self, tuner: Tuner, *, live_target: Callable[[str], str | None]) -> None:
        """`live_target`: alias -> what it points at; None when it was never set or is not known."""
        self._tuner, self._live_target = tuner, live_target

    async def GetTunerStatus(self, request: pb.GetTunerStatusRequest, context: Any) -> pb.GetTunerStatusResponse:  # noqa: ARG002 - gRPC's signature
        """Return what is known of every task that has examples."""
        tasks = {
            name: pb.TaskStatus(
                demonstrations=state.demonstrations,
                judged=state.judged,
                waiting_for=state.waiting_for,
                live=self._live_target(llm_alias(name)) or BASE_MODEL,
            )
            for name, state in self._tuner.tasks().items()
        }
        return pb.GetTunerStatusResponse(
            base_model=self._tuner.base.name,
            paused=await self._tuner.is_paused(),
            tasks=tasks,
            running_tune_id=self._tuner.running_tune_id,
        )

    async def StartTune(self, request: pb.StartTuneRequest, context: Any) -> pb.StartTuneResponse:  # noqa: ARG002
        """Begin a tune. Errors: see the proto."""
        status = await self._tuner.start(request.task, request.actor)
        return pb.StartTuneResponse(tune_id=status.tune_id, adapter=status.adapter)

    async def JudgeAdapter(self, request: pb.JudgeAdapterRequest, context: Any) -> pb.JudgeAdapterResponse:  # noqa: ARG002
        """Judge an adapter of the store. Errors: see the proto."""
        status = await self._tuner.judge(request.adapter, request.actor)
        return pb.JudgeAdapterResponse(tune_id=status.tune_id)

    async def GetTune(self, request: pb.GetTuneRequest, context: Any) -> pb.GetTuneResponse:  # noqa: ARG002
        """Return a tune of this process. Errors: see the proto."""
        status = self._tuner.get(request.tune_id)
        return pb.GetTuneResponse(
            tune_id=status.tune_id,
            task=status.task,
            adapter=status.adapter,
            phase=status.phase,
            step=status.step,
            num_steps=status.num_steps,
            loss=status.loss,
            metrics=status.metrics,
            refusals=status.refusals,
            questions_needed=status.questions_needed,
            error=process_redactor()(status.error),
            mlflow_run_id=status.mlflow_run_id,
        )
