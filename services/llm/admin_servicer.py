"""LlmAdminService: loads, unloads and lists adapters, and scores answers. On a port of its own, since it asks nobody who they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc.aio
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from tunemesh.llm.v1 import llm_admin_service_pb2 as pb
from tunemesh.llm.v1 import llm_admin_service_pb2_grpc

from services.common.events.wire.chat import messages_of
from services.llm.adapter_pool import AdapterPool
from services.llm.core.generation import Generator, Query
from services.llm.core.slots import Slot, State
from services.llm.servicer import StillLoading

Context = grpc.aio.ServicerContext[Any, Any]

_STATES: dict[State, pb.AdapterState] = {
    State.LOADING: pb.ADAPTER_STATE_LOADING,
    State.WARM: pb.ADAPTER_STATE_WARM,
    State.LIVE: pb.ADAPTER_STATE_LIVE,
    State.DRAINING: pb.ADAPTER_STATE_DRAINING,
}


class LlmAdminServicer(llm_admin_service_pb2_grpc.LlmAdminServiceServicer):
    """Before `attach` every call is UNAVAILABLE."""

    def __init__(self, meter: Meter) -> None:
        """`meter` gets the gauge `llm.adapters` by state."""
        self._pool: AdapterPool | None = None
        self._generator: Generator | None = None
        self._base_hash = ""
        meter.create_observable_gauge("llm.adapters", [self._observe], description="Loaded adapters by state.")

    def attach(self, pool: AdapterPool, generator: Generator, *, base_hash: str) -> None:
        """The engine is up: serve with it. `base_hash`: of the base (base_model.base_hash)."""
        self._pool, self._generator, self._base_hash = pool, generator, base_hash

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        adapters = self._pool.adapters if self._pool is not None else []
        return [Observation(sum(slot.state is state for slot in adapters), {"state": state.value}) for state in State]

    def _attached(self) -> AdapterPool:
        if self._pool is None:
            raise StillLoading("the model is still being loaded")
        return self._pool

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Context) -> pb.LoadAdapterResponse:  # noqa: ARG002 - gRPC's signature
        """Load and warm. Errors: see the proto."""
        return pb.LoadAdapterResponse(adapter=_to_adapter(await self._attached().load(request.name)))

    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: Context) -> pb.UnloadAdapterResponse:  # noqa: ARG002 - gRPC's signature
        """Drain and unload. Errors: see the proto; NOT_FOUND: it is not loaded."""
        await self._attached().unload(request.name)
        return pb.UnloadAdapterResponse()

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Context) -> pb.ListAdaptersResponse:  # noqa: ARG002 - gRPC's signature
        """List what is loaded, by name."""
        pool = self._attached()
        adapters = [_to_adapter(slot) for slot in pool.adapters]
        return pb.ListAdaptersResponse(base_model=pool.base_model, adapters=adapters, base_hash=self._base_hash)

    async def ScoreAnswer(self, request: pb.ScoreAnswerRequest, context: Context) -> pb.ScoreAnswerResponse:  # noqa: ARG002 - gRPC's signature
        """Score. Errors: see the proto."""
        if self._generator is None:
            raise StillLoading("the model is still being loaded")
        score = await self._generator.score(Query(messages=messages_of(request.messages), adapter=request.adapter), request.answer)
        return pb.ScoreAnswerResponse(log_likelihood=score.log_likelihood, num_tokens=score.num_tokens)


def _to_adapter(slot: Slot) -> pb.Adapter:
    return pb.Adapter(name=slot.name, content_hash=slot.content_hash, state=_STATES[slot.state], running=slot.running, aliases=slot.aliases)
