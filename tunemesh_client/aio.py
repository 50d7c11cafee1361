"""The asyncio client: `tunemesh_client.client` with `await`, `async for` and `async with`."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

import grpc
import grpc.aio
from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2_grpc as collector_grpc
from tunemesh.router.v1 import router_service_pb2 as router_pb2
from tunemesh.router.v1 import router_service_pb2_grpc as router_grpc

from tunemesh_client.answers import AnswerState
from tunemesh_client.attributes import NONE, Attributes
from tunemesh_client.channels import LOCAL_PLAINTEXT, Transport
from tunemesh_client.client import DEADLINE_S, GENERATE_DEADLINE_S, Call, OnRetry
from tunemesh_client.errors import Cancelled, Internal, InvalidRequest, TunemeshError, error_of
from tunemesh_client.ids import Id
from tunemesh_client.messages import (
    GREEDY,
    Answer,
    Feedback,
    Passage,
    Receipt,
    Recommendation,
    Sampling,
    Turn,
    feedback_request,
    generate_request,
    receipts_of,
    recommend_request,
    recommendation_of,
)
from tunemesh_client.retry import UNTIL_THE_DEADLINE, Attempts, RetryPolicy
from tunemesh_client.tracing import active_traceparent


class AsyncClient:
    """Calls the mesh: recommend, generate, feedback. For one event loop: the one of its first call. Close it, or use `async with`.

    Deadlines, repeats and errors: as `tunemesh_client.Client`.
    """

    def __init__(
        self,
        router: str,
        feedback_collector: str = "",
        *,
        transport: Transport = LOCAL_PLAINTEXT,
        retry: RetryPolicy = UNTIL_THE_DEADLINE,
        deadline_s: float = DEADLINE_S,
        generate_deadline_s: float = GENERATE_DEADLINE_S,
        traceparent: Callable[[], str] = active_traceparent,
        on_retry: OnRetry | None = None,
    ) -> None:
        """Connects with the first call. Arguments and errors: those of `tunemesh_client.Client`."""
        self._router, self._collector, self._transport = router, feedback_collector, transport
        self._retry, self._deadline_s, self._generate_deadline_s = retry, deadline_s, generate_deadline_s
        self._traceparent, self._on_retry = traceparent, on_retry
        for target in filter(None, (router, feedback_collector)):
            transport.check(target)
        self._channels: list[grpc.aio.Channel] = []
        self._is_closed = False
        self._recommend: Call | None = None
        self._generate: Call | None = None
        self._submit: Call | None = None

    async def __aenter__(self) -> AsyncClient:
        """Return itself."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls that are under way end with `Cancelled`, and so does every later one."""
        self._is_closed = True
        for channel in self._channels:
            await channel.close()

    async def recommend(
        self,
        user_id: Id,
        candidates: Iterable[Id] = (),
        limit: int = 0,
        *,
        context: Attributes = NONE,
        profile: Attributes = NONE,
        idempotency_key: str = "",
        deadline_s: float | None = None,
    ) -> Recommendation:
        """Return items for a user, best first. Arguments and errors: those of `tunemesh_client.Client.recommend`."""
        request = recommend_request(user_id, candidates, limit, idempotency_key, context=context, profile=profile)
        what = f"Recommend at {self._router}"
        self._check_open(what)
        method = self._recommend or self._router_stub().Recommend
        response, attempts, latency_s = await self._call(method, request, what, request.idempotency_key, deadline_s)
        return recommendation_of(response, attempts, latency_s)

    def generate(
        self,
        user_id: Id,
        question: str,
        *,
        task: str = "",
        history: Iterable[Turn] = (),
        context: Iterable[Passage] = (),
        retrieve: bool = False,
        retrieval_source: str = "",
        sampling: Sampling = GREEDY,
        adapter: str = "",
        deadline_s: float | None = None,
    ) -> AsyncAnswerStream:
        """Return the answer as an async iterator of pieces of text. Arguments: those of `tunemesh_client.Client.generate`."""
        request = generate_request(
            user_id,
            question,
            task=task,
            history=history,
            context=context,
            retrieve=retrieve,
            retrieval_source=retrieval_source,
            sampling=sampling,
            adapter=adapter,
        )
        what, timeout_s = f"Generate at {self._router}", self._generate_deadline_s if deadline_s is None else deadline_s

        def start(attempt_s: float) -> Any:
            self._check_open(what)
            method = self._generate or self._router_stub().Generate
            return method(request, timeout=attempt_s, metadata=self._metadata())

        return AsyncAnswerStream(start, what, self._retry, timeout_s, self._on_retry)

    async def feedback(self, feedback: Feedback, *, deadline_s: float | None = None) -> Receipt:
        """Report what a user did; return once the mesh's broker has it. Errors: those of `tunemesh_client.Client.feedback`."""
        return (await self.feedback_many([feedback], deadline_s=deadline_s))[0]

    async def feedback_many(self, feedback: Sequence[Feedback], *, deadline_s: float | None = None) -> list[Receipt]:
        """Report 1 to 100 acts in one call; return one receipt each, in order. Errors: as `feedback`; nothing is accepted in part."""
        what = f"SubmitFeedback at {self._collector or 'no address'}"
        if not self._collector:
            raise InvalidRequest("this client was made without the address of a feedback collector", request=what)
        self._check_open(what)
        method = self._submit or self._collector_stub().SubmitFeedback
        response, attempts, _ = await self._call(method, feedback_request(feedback), what, "", deadline_s)
        receipts = receipts_of(response)
        if len(receipts) != len(feedback):
            raise Internal(f"{len(receipts)} receipts came for {len(feedback)} feedback", "OK", what, attempts)
        return receipts

    async def _call(self, method: Call, request: Any, what: str, key: str, deadline_s: float | None) -> tuple[Any, int, float]:
        """Return the response, the number of attempts and the seconds that the last one took."""
        now_s = time.monotonic()
        attempts = Attempts(self._retry, self._deadline_s if deadline_s is None else deadline_s, now_s)
        while True:
            self._check_open(what)
            try:
                response = await method(request, timeout=attempts.begin(now_s), metadata=self._metadata())
                return response, attempts.number, time.monotonic() - now_s
            except asyncio.CancelledError as error:
                if not self._is_closed or _is_cancelling():
                    raise
                raise Cancelled("the client was closed meanwhile", "CANCELLED", what, attempts.number, key) from error
            except grpc.aio.AioRpcError as error:
                failure = error_of(error, what, attempts.number, key)
                if not await _pause(attempts, failure, self._on_retry):
                    raise failure from error
            now_s = time.monotonic()

    def _check_open(self, what: str) -> None:
        if self._is_closed:
            raise Cancelled("the client is closed", "CANCELLED", what)

    def _router_stub(self) -> Any:
        """Connect: channels belong to the event loop on which they are opened."""
        stub = router_grpc.RouterServiceStub(self._open(self._router))  # type: ignore[no-untyped-call] # generated
        self._recommend, self._generate = stub.Recommend, stub.Generate
        return stub

    def _collector_stub(self) -> Any:
        stub = collector_grpc.FeedbackCollectorServiceStub(self._open(self._collector))  # type: ignore[no-untyped-call] # generated
        self._submit = stub.SubmitFeedback
        return stub

    def _open(self, target: str) -> grpc.aio.Channel:
        channel = self._transport.open_aio(target)
        self._channels.append(channel)
        return channel

    def _metadata(self) -> tuple[tuple[str, str], ...] | None:
        traceparent = self._traceparent()
        return (("traceparent", traceparent),) if traceparent else None


class AsyncAnswerStream(AnswerState):
    """`tunemesh_client.AnswerStream` for asyncio."""

    __slots__ = ("_attempts", "_call", "_is_open", "_on_retry", "_policy", "_request", "_start", "_timeout_s")

    def __init__(
        self, start: Callable[[float], Any], request: str, policy: RetryPolicy, timeout_s: float, on_retry: OnRetry | None
    ) -> None:
        """Made by `AsyncClient.generate`. `start(seconds)` begins a call."""
        super().__init__()
        self._start, self._request, self._policy = start, request, policy
        self._timeout_s, self._on_retry = timeout_s, on_retry
        self._attempts: Attempts | None = None
        self._call: Any = None
        self._is_open = True

    def __aiter__(self) -> AsyncIterator[str]:
        """Return itself."""
        return self

    async def __anext__(self) -> str:
        """Return the next piece of text, never empty. Errors: those of `Client.recommend`, NotFound for an adapter that is not loaded."""
        while self._is_open:
            try:
                message = await self._next_message()
            except asyncio.CancelledError as error:
                if _is_cancelling():
                    raise
                if not self._is_open:  # `close`, by another task
                    break
                raise Cancelled("the client was closed meanwhile", "CANCELLED", self._request, self.attempts) from error
            except grpc.aio.AioRpcError as error:
                await self._recover(error_of(error, self._request, self.attempts))
                continue
            if message is not None:
                text = self._take(message)
                if text:
                    return text
            elif self.finish_reason:
                break
            else:
                await self._recover(self._incomplete(self._request))
        self._is_open = False
        raise StopAsyncIteration

    async def __aenter__(self) -> AsyncAnswerStream:
        """Return itself."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    async def read(self) -> Answer:
        """Read to the end and return the whole answer."""
        async for _ in self:
            pass
        return self.answer()

    def close(self) -> None:
        """Stop here: the call is cancelled, and the model stops. Does nothing after the end."""
        self._is_open = False
        if self._call is not None:
            self._call.cancel()

    async def _next_message(self) -> router_pb2.GenerateResponse | None:
        """Return the next message, None at the end."""
        if self._call is None:
            now_s = time.monotonic()
            if self._attempts is None:
                self._attempts = Attempts(self._policy, self._timeout_s, now_s)
            self._call = self._start(self._attempts.begin(now_s))
            self.attempts = self._attempts.number
        message = await self._call.read()
        return None if message is grpc.aio.EOF else message

    async def _recover(self, failure: TunemeshError) -> None:
        """Prepare another attempt, or raise. After `close` there is nothing to recover."""
        if not self._is_open:
            return
        assert self._attempts is not None
        if self._pieces or not await _pause(self._attempts, failure, self._on_retry):
            self._is_open = False
            raise failure
        self._call = None
        self._reset()


def _is_cancelling() -> bool:
    """Return whether somebody has cancelled the task: gRPC reports a call that was cancelled by `close` in the same way."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _pause(attempts: Attempts, failure: TunemeshError, on_retry: OnRetry | None) -> bool:
    """Wait before the next attempt and return True, or return False when there is none."""
    pause_s = attempts.pause_s(failure, time.monotonic(), random.uniform)
    if pause_s is None:
        return False
    if on_retry is not None:
        on_retry(failure, pause_s)
    await asyncio.sleep(pause_s)
    return True
