"""The router, by gRPC: asks a question and gathers the streamed answer."""

from __future__ import annotations

import grpc
import grpc.aio
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc
from typing_extensions import override

from services.common.platform.grpc_client import open_channel
from services.common.platform.traceparent import outgoing_metadata
from streams.inference.core import Answer, NotNow, Question, Refused, Router

_FINAL = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED)


class GrpcRouter(Router):
    """Calls RouterService.Generate and gathers the stream."""

    def __init__(self, target: str, *, max_message_bytes: int) -> None:
        """Connects lazily. Must be made on the event loop that uses it."""
        self._target = target
        self._channel = open_channel(target, max_message_bytes=max_message_bytes)
        self._stub = router_service_pb2_grpc.RouterServiceStub(self._channel)  # type: ignore[no-untyped-call] # generated

    @override
    async def answer(self, question: Question, *, timeout_s: float) -> Answer:
        """Return the whole answer.

        Raises:
            Refused: the router will never answer this question.
            NotNow: it did not answer, or broke off.
        """
        call = self._stub.Generate(question.body, timeout=timeout_s, metadata=outgoing_metadata())
        header = router_service_pb2.GenerateHeader()
        texts: list[str] = []
        last = router_service_pb2.GenerateResponse()
        try:
            async for response in call:
                if response.HasField("header"):
                    header = response.header
                texts.append(response.text)
                last = response
        except grpc.aio.AioRpcError as error:
            message = f"the router at {self._target} answered {error.code().name}: {error.details()}"
            raise Refused(message) if error.code() in _FINAL else NotNow(message) from error
        finally:
            call.cancel()
        if not header.request_id or not last.finish_reason:
            raise NotNow(f"the router at {self._target} ended its stream without a header or a finish reason")
        return Answer(
            request_id=header.request_id,
            text="".join(texts),
            finish_reason=last.finish_reason,
            model_version=header.model_version,
            prompt_version=header.prompt_version,
            degraded_reason=header.degraded_reason,
            passage_ids=tuple(passage.passage_id for passage in header.passages),
            prompt_tokens=last.usage.prompt_tokens,
            completion_tokens=last.usage.completion_tokens,
        )

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()
