"""The demo's two roles towards the mesh: a product backend (gRPC) and an event producer (Kafka).

Every call is retried with the same idempotency key until its deadline, so that the death of any one process costs time
and nothing else. Knows nothing of the data set or of metrics.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
from tunemesh.events.v1 import feedback_pb2
from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2 as collector_pb2
from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2_grpc as collector_grpc
from tunemesh.router.v1 import router_service_pb2 as router_pb2
from tunemesh.router.v1 import router_service_pb2_grpc as router_grpc

from services.common.events.envelope import headers_for
from services.common.events.topics import FEEDBACK
from services.common.platform.errors import ConfigurationError, Overloaded, Unavailable
from services.common.platform.kafka_async import AsyncProducer, Record

T = TypeVar("T")

_RETRYABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
_ATTEMPT_TIMEOUT_S = 10.0
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 2.0


@dataclass(slots=True)
class CallCounts:
    """What became of the calls: `failed` are those that did not succeed within their deadline, retries included."""

    succeeded: int = 0
    retried: int = 0
    failed: int = 0
    last_error: str = ""
    recommend_latency_ms: list[float] = field(default_factory=list)


class MeshClient:
    """Calls the router and the feedback collector, and writes feedback straight to Kafka."""

    def __init__(self, *, router: str, collector: str, kafka: str, call_deadline_s: float = 90.0) -> None:
        """Take addresses (host:port); nothing is opened before `start`."""
        # A killed server must be found again quickly: gRPC's own reconnect backoff grows to two minutes.
        options = [("grpc.max_reconnect_backoff_ms", 1000), ("grpc.max_receive_message_length", 16 << 20)]
        self._channels = [grpc.aio.insecure_channel(address, options=options) for address in (router, collector)]
        self._router = router_grpc.RouterServiceStub(self._channels[0])
        self._collector = collector_grpc.FeedbackCollectorServiceStub(self._channels[1])
        self._producer = AsyncProducer(kafka, client_id="demo-producer")
        self._kafka = kafka
        self._call_deadline_s = call_deadline_s
        self.counts = CallCounts()

    async def start(self) -> None:
        """Connect the producer. Raises ConfigurationError when the broker is away."""
        if not await self._producer.start(wait_s=10.0):
            raise ConfigurationError(f"the broker at {self._kafka} cannot be reached")

    async def stop(self) -> None:
        """Flush and close."""
        await self._producer.stop()
        for channel in self._channels:
            await channel.close()

    async def recommend(
        self, user_id: str, candidates: Sequence[str], *, limit: int, idempotency_key: str
    ) -> router_pb2.RecommendResponse | None:
        """Return the router's answer, or None (counted as failed) when the deadline passed."""
        request = router_pb2.RecommendRequest(user_id=user_id, candidates=candidates, limit=limit, idempotency_key=idempotency_key)

        async def call() -> router_pb2.RecommendResponse:
            start = time.monotonic()
            response = await self._router.Recommend(request, timeout=_ATTEMPT_TIMEOUT_S)
            self.counts.recommend_latency_ms.append((time.monotonic() - start) * 1e3)
            return response

        return await self._retry(call)

    async def submit_feedback(self, feedback: feedback_pb2.Feedback) -> int | None:
        """Report through the collector; return its accepted_at_ms, or None (counted as failed)."""
        request = collector_pb2.SubmitFeedbackRequest(feedback=[feedback])

        async def call() -> int:
            response = await self._collector.SubmitFeedback(request, timeout=_ATTEMPT_TIMEOUT_S)
            return int(response.receipts[0].accepted_at_ms)

        return await self._retry(call)

    async def produce_feedback(self, feedback: feedback_pb2.Feedback) -> int | None:
        """Write straight to feedback.v1, as a third-party event producer does; return accepted_at_ms, or None (failed)."""
        feedback.accepted_at_ms = time.time_ns() // 1_000_000
        value = feedback.SerializeToString()
        headers = headers_for("tunemesh.events.v1.Feedback", "/loadtests/demo")

        async def call() -> int:
            await self._producer.send([Record(FEEDBACK.name, feedback.user_id.encode(), value, headers)])
            return feedback.accepted_at_ms

        return await self._retry(call)

    async def _retry(self, call: Callable[[], Awaitable[T]]) -> T | None:
        deadline = time.monotonic() + self._call_deadline_s
        backoff = _FIRST_BACKOFF_S
        while True:
            try:
                result = await call()
            except (grpc.aio.AioRpcError, Unavailable, Overloaded) as error:
                self.counts.last_error = _describe(error)
                final = isinstance(error, grpc.aio.AioRpcError) and error.code() not in _RETRYABLE
                if final or time.monotonic() + backoff > deadline:
                    self.counts.failed += 1
                    return None
                self.counts.retried += 1
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, _MAX_BACKOFF_S)
            else:
                self.counts.succeeded += 1
                return result


def _describe(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"
