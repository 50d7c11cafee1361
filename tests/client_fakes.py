"""A scripted router and feedback collector behind a real gRPC server, and the client's three ways to call them as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from tunemesh.common.v1 import chat_pb2, passage_pb2, recommendation_pb2
from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2 as collector_pb2
from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2_grpc as collector_grpc
from tunemesh.router.v1 import router_service_pb2 as router_pb2
from tunemesh.router.v1 import router_service_pb2_grpc as router_grpc

from tunemesh_client import AsyncClient, Client, Feedback, Receipt, Recommendation

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
DONE = "<done>"
HEADER = "<header>"


@dataclass(frozen=True)
class Refusal:
    """The call ends with this status."""

    code: grpc.StatusCode = UNAVAILABLE
    details: str = "not now"
    metadata: tuple[tuple[str, bytes], ...] = ()


class Hang:
    """No answer ever comes."""


@dataclass(frozen=True)
class Seen:
    """One call as the server saw it."""

    request: Any
    metadata: dict[str, str | bytes]
    remaining_s: float


@dataclass
class ScriptedMesh(router_grpc.RouterServiceServicer, collector_grpc.FeedbackCollectorServiceServicer):
    """Each call takes the next outcome of `script`; when there is none left, it is answered.

    An outcome is a Refusal, a Hang, or, of Generate, a list of pieces, HEADER, DONE, Refusals and Hangs.
    """

    script: list[Any] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    hanging: int = 0
    """Calls that have come to a Hang."""
    cancelled: int = 0
    """Those of them that were cancelled there."""
    receipts_short: int = 0

    async def Recommend(self, request: router_pb2.RecommendRequest, context: Any) -> router_pb2.RecommendResponse:
        await self._play(self._next(request, context), context)
        number = len(self.seen)
        items = [
            recommendation_pb2.RankedItem(item_id=name, score=1.0 / place, task_scores=[0.25, 0.75], reasons=["candidate"])
            for place, name in enumerate(list(request.candidates)[: request.limit or None], start=1)
        ]
        return router_pb2.RecommendResponse(
            request_id=f"r{number}", variant="default", model_version="1.7", task_names=["interact", "like"], items=items
        )

    async def Generate(self, request: router_pb2.GenerateRequest, context: Any) -> AsyncIterator[router_pb2.GenerateResponse]:
        outcome = self._next(request, context)
        number = len(self.seen)
        steps = outcome if isinstance(outcome, list) else [outcome] if outcome is not None else [HEADER, "It ", "is ", "1995.", DONE]
        for step in steps:
            if step == HEADER:
                yield router_pb2.GenerateResponse(header=header(number))
            elif step == DONE:
                usage = chat_pb2.TokenUsage(prompt_tokens=11, completion_tokens=3)
                yield router_pb2.GenerateResponse(finish_reason="stop", usage=usage)
            elif isinstance(step, str):
                yield router_pb2.GenerateResponse(text=step)
            else:
                await self._play(step, context)

    async def SubmitFeedback(self, request: collector_pb2.SubmitFeedbackRequest, context: Any) -> collector_pb2.SubmitFeedbackResponse:
        known = {act.feedback_id for call in self.seen if hasattr(call.request, "feedback") for act in call.request.feedback}
        await self._play(self._next(request, context), context)
        receipts = [
            collector_pb2.FeedbackReceipt(feedback_id=act.feedback_id, accepted_at_ms=5, duplicate=act.feedback_id in known)
            for act in request.feedback
        ]
        return collector_pb2.SubmitFeedbackResponse(receipts=receipts[self.receipts_short :])

    def _next(self, request: Any, context: Any) -> Any:
        self.seen.append(Seen(request, dict(context.invocation_metadata()), context.time_remaining()))
        return self.script.pop(0) if self.script else None

    async def _play(self, outcome: Any, context: Any) -> None:
        if isinstance(outcome, Refusal):
            await context.abort(outcome.code, outcome.details, outcome.metadata)
        if isinstance(outcome, Hang):
            self.hanging += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled += 1


def header(number: int) -> router_pb2.GenerateHeader:
    return router_pb2.GenerateHeader(
        request_id=f"g{number}",
        variant="default",
        model_version="Smol",
        prompt_version="answer@v3",
        degraded_reason="retrieval_unavailable",
        passages=[passage_pb2.Passage(passage_id="docs/a#1", title="A", text="Toy Story, 1995", score=0.5)],
    )


async def start_mesh(
    mesh: ScriptedMesh, *, port: int = 0, credentials: grpc.ServerCredentials | None = None
) -> tuple[grpc.aio.Server, int]:
    """Serve it and return the server and its port."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    router_grpc.add_RouterServiceServicer_to_server(mesh, server)
    collector_grpc.add_FeedbackCollectorServiceServicer_to_server(mesh, server)
    address = f"127.0.0.1:{port}"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    return server, port


class Awaited:
    """The blocking client with the asyncio client's surface: each call waits in a thread."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def recommend(self, *arguments: Any, **options: Any) -> Recommendation:
        return await asyncio.to_thread(self._client.recommend, *arguments, **options)

    async def feedback(self, feedback: Feedback, **options: Any) -> Receipt:
        return await asyncio.to_thread(self._client.feedback, feedback, **options)

    async def feedback_many(self, feedback: list[Feedback], **options: Any) -> list[Receipt]:
        return await asyncio.to_thread(self._client.feedback_many, feedback, **options)

    def generate(self, *arguments: Any, **options: Any) -> AwaitedStream:
        return AwaitedStream(self._client.generate(*arguments, **options))

    async def close(self) -> None:
        await asyncio.to_thread(self._client.close)


class AwaitedStream:
    """The blocking stream with the asyncio stream's surface; everything else is the blocking stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __aiter__(self) -> AwaitedStream:
        return self

    async def __anext__(self) -> str:
        text = await asyncio.to_thread(next, self._stream, None)
        if text is None:
            raise StopAsyncIteration
        return text

    async def read(self) -> Any:
        return await asyncio.to_thread(self._stream.read)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


WAYS = {
    "blocking": lambda *arguments, **options: Awaited(Client(*arguments, **options)),
    "gevent": lambda *arguments, **options: Awaited(Client(*arguments, gevent=True, **options)),
    "asyncio": AsyncClient,
}
