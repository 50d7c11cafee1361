"""control.v1 over gRPC, through its owner."""

from __future__ import annotations

import grpc
import grpc.aio
from tunemesh.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc
from typing_extensions import override

from services.common.language.adapter_name import AdapterName
from services.common.language.aliases import BASE_MODEL, llm_alias
from services.common.platform.errors import Conflict
from services.common.platform.traceparent import outgoing_metadata
from services.tuner.grpc_calls import Retries, translated
from services.tuner.neighbours import Control, Live
from services.tuner.tuner import Learning

_CALL_TIMEOUT_S = 10.0
_STATUS_TIMEOUT_S = 2.0


class GrpcControl(Control, Learning):
    """control.v1 through its owner, TrainerService."""

    def __init__(self, channel: grpc.aio.Channel, *, actor: str, retries: Retries) -> None:
        """The channel is closed by its owner; `actor` is recorded with every change."""
        self._stub = trainer_service_pb2_grpc.TrainerServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        self._actor, self._retries = actor, retries

    @override
    async def live(self, task: str) -> Live:
        """Return what llm/TASK/production points at; the base, version 0, when it was never set. Raises Unavailable."""
        return await self._retries.call(lambda: self._live_once(task))

    @override
    async def set_live(self, task: str, name: AdapterName, expected_version: int) -> None:
        """Point llm/TASK/production at `name`.

        Raises:
            Conflict: somebody else moved it since it was read, so that the candidate was not compared with what is live now; or the
                trainer does not let it point there.
            Unavailable: the trainer cannot be reached; the alias may have moved all the same.
        """
        alias = llm_alias(task)

        async def once() -> None:
            request = trainer_service_pb2.SetAliasRequest(
                alias=alias, target=str(name), expected_version=expected_version, actor=self._actor
            )
            try:
                await self._stub.SetAlias(request, timeout=_CALL_TIMEOUT_S, metadata=outgoing_metadata())
            except grpc.aio.AioRpcError as error:
                raise translated(error, f"{alias} was not moved to {name}") from error

        try:
            await self._retries.call(once)
        except Conflict:
            now = await self.live(task)
            if now.version == expected_version:  # nobody moved it: the trainer says what else is wrong
                raise
            # A first attempt whose answer was lost looks like somebody else's move.
            if now != Live(str(name), expected_version + 1):
                raise Conflict(
                    f"{alias} was moved to {now.target} while {name} was judged, which was not compared with that: start another tune"
                ) from None

    @override
    async def is_paused(self) -> bool:
        """Return whether learning is paused. Raises Unavailable when the trainer cannot say."""
        try:
            status = await self._stub.GetStatus(trainer_service_pb2.GetStatusRequest(), timeout=_STATUS_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise translated(error, "whether learning is paused is not known") from error
        return bool(status.paused)

    async def _live_once(self, task: str) -> Live:
        alias = llm_alias(task)
        try:
            found = await self._stub.GetAlias(
                trainer_service_pb2.GetAliasRequest(alias=alias), timeout=_CALL_TIMEOUT_S, metadata=outgoing_metadata()
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return Live(BASE_MODEL, 0)
            raise translated(error, f"{alias} could not be read") from error
        return Live(found.target, found.version)
