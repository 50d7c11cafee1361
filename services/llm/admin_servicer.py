"""LlmAdminService: loads, unloads and lists adapters. On a port of its own, since it asks nobody who they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc.aio
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from tunemesh.llm.v1 import llm_admin_service_pb2 as pb
from tunemesh.llm.v1 import llm_admin_service_pb2_grpc

from services.llm.adapter_pool import AdapterPool
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
        meter.create_observable_gauge("llm.adapters", [self._observe], description="Loaded adapters by state.")

    def attach(self, pool: AdapterPool) -> None:
        """The engine is up: serve with it."""
        self._pool = pool

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
        return pb.ListAdaptersResponse(base_model=pool.base_model, adapters=[_to_adapter(slot) for slot in pool.adapters])


def _to_adapter(slot: Slot) -> pb.Adapter:
    return pb.Adapter(name=slot.name, content_hash=slot.content_hash, state=_STATES[slot.state], running=slot.running, aliases=slot.aliases)
