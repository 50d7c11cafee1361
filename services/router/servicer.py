"""RouterService: proto -> domain, one call of the core, domain -> proto."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import grpc.aio
from opentelemetry import trace
from tunemesh.common.v1 import recommendation_pb2
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc

from services.router.core import Query, Recommendation, Router


class Degradations(Protocol):
    """Takes note of answers that are not whole."""

    def note(self, reason: str) -> None:
        """Count one, by its reason."""
        ...


class RouterServicer(router_service_pb2_grpc.RouterServiceServicer):
    """The public API."""

    def __init__(self, router: Router, degradations: Degradations) -> None:
        """`router` decides; `degradations` counts."""
        self._router = router
        self._degradations = degradations

    async def Recommend(
        self, request: router_service_pb2.RecommendRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> router_service_pb2.RecommendResponse:
        """Rank the candidates, or recall and rank. Errors: see the proto."""
        query = Query(
            user_id=request.user_id,
            candidates=tuple(request.candidates),
            limit=request.limit,
            idempotency_key=request.idempotency_key,
        )
        answer = await self._router.recommend(query, remaining_s=context.time_remaining())
        _describe(query, answer)
        reason = answer.ranking.degraded_reason
        if reason:
            self._degradations.note(reason)
        return router_service_pb2.RecommendResponse(
            request_id=answer.request_id,
            experiment=answer.experiment,
            variant=answer.variant,
            model_version=answer.ranking.model_version,
            degraded_reason=reason,
            task_names=answer.ranking.task_names,
            items=cast("Sequence[recommendation_pb2.RankedItem]", answer.ranking.items),  # the adapter passes them through
        )


def _describe(query: Query, answer: Recommendation) -> None:
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attribute("tunemesh.request_id", answer.request_id)
        span.set_attribute("tunemesh.num_candidates", len(query.candidates))
        span.set_attribute("tunemesh.model_version", answer.ranking.model_version)
        span.set_attribute("tunemesh.degraded_reason", answer.ranking.degraded_reason)
