"""The router's gRPC client of the recommender, and the counter of degraded answers."""

from __future__ import annotations

import logging
import time

import grpc
import grpc.aio
from tunemesh.recommender.v1 import recommender_service_pb2, recommender_service_pb2_grpc

from services.common.platform.errors import InvalidInput, Overloaded
from services.common.platform.telemetry import Telemetry, outgoing_metadata
from services.router.core import Query, Ranking, RecommenderTooSlow, RecommenderUnavailable

_LOG_EVERY_S = 10.0

_log = logging.getLogger(__name__)


class RecommenderFailed(Exception):
    """The recommender answered with a status that only a defect explains; the caller gets INTERNAL."""


def channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Return the options of every channel that the router opens."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # The default backoff grows to two minutes: a service that came back would stay unseen for that long.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
    ]


class GrpcRecommender:
    """Calls RecommenderService.Recommend."""

    def __init__(self, target: str, *, max_message_bytes: int) -> None:
        """Connects lazily. Must be made on the event loop that uses it."""
        self._target = target
        self._channel = grpc.aio.insecure_channel(target, options=channel_options(max_message_bytes))
        self._stub = recommender_service_pb2_grpc.RecommenderServiceStub(self._channel)  # type: ignore[no-untyped-call] # generated

    async def recommend(self, query: Query, *, timeout_s: float, wait_for_ready: bool) -> Ranking:
        """See `services.router.core.Recommender`. The items of the answer are the recommender's own messages, passed through."""
        request = recommender_service_pb2.RecommendRequest(user_id=query.user_id, candidates=query.candidates, limit=query.limit)
        try:
            response = await self._stub.Recommend(request, timeout=timeout_s, wait_for_ready=wait_for_ready, metadata=outgoing_metadata())
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, timeout_s) from error
        return Ranking(
            items=response.items,
            task_names=response.task_names,
            model_version=response.model_version,
            degraded_reason=response.degraded_reason,
            features_block=response.features_block,
            schema_hash=response.schema_hash,
        )

    def _translated(self, error: grpc.aio.AioRpcError, timeout_s: float) -> Exception:
        code, detail = error.code(), error.details() or ""
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return RecommenderUnavailable(
                f"the recommender at {self._target} is unavailable ({detail}); retry with the same idempotency_key"
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            message = f"the recommender at {self._target} did not answer in {timeout_s * 1e3:.0f} ms; retry with the same idempotency_key"
            return RecommenderTooSlow(message)
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidInput(detail)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Overloaded(detail)
        return RecommenderFailed(f"the recommender at {self._target} answered {code.name}: {detail}")

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


class DegradedAnswers:
    """Counts answers that are not whole, and logs each reason at most once in ten seconds."""

    def __init__(self, telemetry: Telemetry) -> None:
        """Records the counter `router.degraded` by reason."""
        self._counter = telemetry.meter.create_counter("router.degraded", description="Answers with a degraded_reason.")
        self._next_log_s: dict[str, float] = {}
        self._since_log: dict[str, int] = {}

    def note(self, reason: str) -> None:
        """Take note of one degraded answer."""
        self._counter.add(1, {"reason": reason})
        self._since_log[reason] = self._since_log.get(reason, 0) + 1
        now_s = time.monotonic()
        if now_s >= self._next_log_s.get(reason, 0.0):
            _log.warning("%d degraded answers: %s", self._since_log[reason], reason)
            self._next_log_s[reason] = now_s + _LOG_EVERY_S
            self._since_log[reason] = 0
