"""Prompts over gRPC, from the prompt assembler."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import grpc.aio
from tunemesh.prompt_assembler.v1 import prompt_assembler_service_pb2, prompt_assembler_service_pb2_grpc
from typing_extensions import override

from services.common.events.chat import Message, Passage
from services.common.events.wire.chat import messages_of, passage_messages
from services.common.platform.errors import NotFound, Unavailable
from services.common.platform.traceparent import outgoing_metadata
from services.tuner.grpc_calls import Retries, translated
from services.tuner.neighbours import Prompts

_DEFAULT_TEMPLATE = "answer"
_CALL_TIMEOUT_S = 10.0


class GrpcPrompts(Prompts):
    """Prompts from PromptAssemblerService, with the template that the router would take: the task's own, else "answer"."""

    def __init__(self, channel: grpc.aio.Channel, retries: Retries) -> None:
        """The channel is closed by its owner."""
        self._stub = prompt_assembler_service_pb2_grpc.PromptAssemblerServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        self._retries = retries

    @override
    async def assemble(self, task: str, question: str, passages: Sequence[Passage]) -> tuple[Message, ...]:
        """Return the messages.

        Raises:
            Unavailable: the assembler cannot be reached, or answers degraded: not as it would answer a user.
            NotFound, InvalidInput: as it says.
        """
        try:
            return await self._retries.call(lambda: self._once(task, question, passages))
        except NotFound:
            return await self._retries.call(lambda: self._once(_DEFAULT_TEMPLATE, question, passages))

    async def _once(self, template: str, question: str, passages: Sequence[Passage]) -> tuple[Message, ...]:
        request = prompt_assembler_service_pb2.AssembleRequest(template=template, question=question, passages=passage_messages(passages))
        try:
            response = await self._stub.Assemble(request, timeout=_CALL_TIMEOUT_S, metadata=outgoing_metadata())
        except grpc.aio.AioRpcError as error:
            raise translated(error, f"the prompt assembler made no prompt from template {template!r}") from error
        if response.degraded_reason:
            raise Unavailable(f"the prompt assembler's answer is degraded ({response.degraded_reason})")
        return messages_of(response.messages)
