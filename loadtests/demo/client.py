"""The demo's two roles towards the mesh, by `tunemesh_client`: a product backend (gRPC) and an event producer (Kafka).

The client repeats every call with the same idempotency key until its deadline, so that the death of any one process costs time and
nothing else; what is left to do here is to count. Knows nothing of the data set or of metrics.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from services.common.platform.errors import ConfigurationError
from tunemesh_client import AsyncClient, AsyncEventProducer, Feedback, Recommendation, RetryPolicy, TunemeshError

T = TypeVar("T")

_CONNECT_LIMIT_S = 10.0
_RETRY = RetryPolicy(retries=None, first_pause_s=0.1, max_pause_s=2.0, attempt_timeout_s=10.0)


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
        """Take addresses (host:port); nothing is opened before the first call."""
        self._client = AsyncClient(router, collector, retry=_RETRY, deadline_s=call_deadline_s, on_retry=self._note_retry)
        self._producer = AsyncEventProducer(
            kafka,
            source="/loadtests/demo",
            client_id="demo-producer",
            retry=_RETRY,
            deadline_s=call_deadline_s,
            on_retry=self._note_retry,
        )
        self._kafka = kafka
        self.counts = CallCounts()

    async def start(self) -> None:
        """Connect the producer. Raises ConfigurationError when the broker is down."""
        try:
            await self._producer.connect(deadline_s=_CONNECT_LIMIT_S)
        except TunemeshError as error:
            raise ConfigurationError(f"the broker at {self._kafka} cannot be reached: {error.details}") from error

    async def stop(self) -> None:
        """Flush and close."""
        await self._producer.close()
        await self._client.close()

    async def recommend(self, user_id: str, candidates: Sequence[str], *, limit: int, idempotency_key: str) -> Recommendation | None:
        """Return the router's answer, or None (counted as failed) when the deadline passed."""
        found = await self._counted(self._client.recommend(user_id, candidates, limit, idempotency_key=idempotency_key))
        if found is not None:
            self.counts.recommend_latency_ms.append(found.latency_s * 1e3)
        return found

    async def submit_feedback(self, feedback: Feedback) -> int | None:
        """Report through the collector; return its accepted_at_ms, or None (counted as failed)."""
        receipt = await self._counted(self._client.feedback(feedback))
        return None if receipt is None else receipt.accepted_at_ms

    async def produce_feedback(self, feedback: Feedback) -> int | None:
        """Write straight to feedback.v1, as a third-party event producer does; return accepted_at_ms, or None (failed)."""
        written = await self._counted(self._producer.send(feedback))
        return None if written is None else written.accepted_at_ms

    async def _counted(self, call: Awaitable[T]) -> T | None:
        try:
            result = await call
        except TunemeshError as error:
            self.counts.last_error = str(error)
            self.counts.failed += 1
            return None
        self.counts.succeeded += 1
        return result

    def _note_retry(self, error: TunemeshError, pause_s: float) -> None:  # noqa: ARG002 - the client's signature
        self.counts.retried += 1
        self.counts.last_error = str(error)
