"""The router's gRPC client of the recommender."""

from __future__ import annotations

import grpc
import grpc.aio
from tunemesh.recommender.v1 import recommender_service_pb2, recommender_service_pb2_grpc
from typing_extensions import override

from services.common.platform.errors import InvalidInput, Overloaded
from services.common.platform.grpc_client import open_channel
from services.common.platform.traceparent import outgoing_metadata
from services.router.core import Query, Ranking, Recommender, RecommenderTooSlow, RecommenderUnavailable


class RecommenderFailed(Exception):
    """The recommender answered with a status that only a defect explains; the caller gets INTERNAL."""


class GrpcRecommender(Recommender):
    """Calls RecommenderService.Recommend."""

    def __init__(self, target: str, *, max_message_bytes: int) -> None:
        """Connects lazily. Must be made on the event loop that uses it."""
        self._target = target
        self._channel = open_channel(target, max_message_bytes=max_message_bytes)
        self._stub = recommender_service_pb2_grpc.RecommenderServiceStub(self._channel)  # type: ignore[no-untyped-call] # generated

    @override
    async def recommend(self, query: Query, *, timeout_s: float, wait_for_ready: bool) -> Ranking:
        """Ask the recommender; the items of the answer are its own messages, passed through."""
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
            logged=response.logged if response.HasField("logged") else None,
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
