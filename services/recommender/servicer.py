"""RecommenderService: request message to query, one core call, answer to response message."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tunemesh.recommender.v1 import recommender_service_pb2, recommender_service_pb2_grpc

from services.common.events.wire.attributes import typed_values
from services.common.platform.clock import wall_ms
from services.common.platform.errors import InvalidInput
from services.common.platform.grpc_parts import Failure, Parts
from services.common.platform.telemetry import Telemetry
from services.common.ranker.feature_spec import FeatureSpec
from services.recommender.core import Answer, InvalidQuery, Query, Recommender
from services.recommender.packed_items import packed

# For callers that set no deadline.
_DEFAULT_TIMEOUT_S = 5.0
# Of one RecommendMany.
_MAX_MERGED = 64

METHOD = "/tunemesh.recommender.v1.RecommenderService/Recommend"


class RecommenderServicer(recommender_service_pb2_grpc.RecommenderServiceServicer):
    """One method per RPC; see protos/tunemesh/recommender/v1."""

    def __init__(self, recommender: Recommender, spec: FeatureSpec, telemetry: Telemetry, *, max_candidates: int) -> None:
        self._recommender, self._spec, self._max_candidates = recommender, spec, max_candidates
        self._parts = Parts(telemetry, METHOD)
        self._degraded = telemetry.meter.create_counter("recommender.degraded", description="Answers that lack something, by reason.")

    async def Recommend(self, request: recommender_service_pb2.RecommendRequest, context: Any) -> recommender_service_pb2.RecommendResponse:
        """Rank the candidates, or recall and rank. INVALID_ARGUMENT for a query that breaks the contract."""
        return await self._answer(request, context.time_remaining())

    async def RecommendMany(
        self,
        request: recommender_service_pb2.RecommendManyRequest,
        context: Any,  # noqa: ARG002 - gRPC's signature
    ) -> recommender_service_pb2.RecommendManyResponse:
        """Answer each request by itself; they run side by side, so that what they ask of others is merged again."""
        if not 1 <= len(request.requests) <= _MAX_MERGED:
            raise InvalidInput(f"requests: {len(request.requests)} given, 1 to {_MAX_MERGED} are allowed")
        answers = await asyncio.gather(*map(self._part, request.requests))
        return recommender_service_pb2.RecommendManyResponse(answers=answers)

    async def _part(self, part: recommender_service_pb2.MergedRequest) -> recommender_service_pb2.MergedAnswer:
        timeout_s = part.timeout_ms / 1e3 if part.timeout_ms else None

        async def serialised() -> bytes:
            return (await self._answer(part.request, timeout_s)).SerializeToString()

        answer = await self._parts.answer(part.traceparent, serialised)
        if isinstance(answer, Failure):
            return recommender_service_pb2.MergedAnswer(code=answer.number, message=answer.message)
        return recommender_service_pb2.MergedAnswer(response=answer)

    async def _answer(
        self, request: recommender_service_pb2.RecommendRequest, remaining_s: float | None
    ) -> recommender_service_pb2.RecommendResponse:
        query = Query.checked(
            request.user_id,
            request.candidates,
            request.limit,
            deadline_s=time.monotonic() + (_DEFAULT_TIMEOUT_S if remaining_s is None else remaining_s),
            now_ms=wall_ms(),
            max_candidates=self._max_candidates,
            context=typed_values("context", request.context, InvalidQuery),
            profile=typed_values("profile", request.profile, InvalidQuery),
        )
        answer = await self._recommender.recommend(query)
        for reason in answer.degraded:
            self._degraded.add(1, {"reason": reason})
        return self.packed_response(answer) if request.packed else self.response(answer)

    def packed_response(self, answer: Answer) -> recommender_service_pb2.RecommendResponse:
        """Return the message of an answer for a caller that passes the items on."""
        version = answer.version
        return recommender_service_pb2.RecommendResponse(
            model_version="" if version is None else f"{version.epoch}.{version.seq_max}",
            seq_min=0 if version is None else version.seq_min,
            seq_max=0 if version is None else version.seq_max,
            degraded_reason=",".join(answer.degraded),
            packed=packed(answer, self._spec.task_names, self._spec.schema_hash),
        )

    def response(self, answer: Answer) -> recommender_service_pb2.RecommendResponse:
        """Return the message of an answer."""
        version, items = answer.version, answer.items
        scores = items.scores_K.tolist()
        rows = zip(items.item_ids, scores, items.task_scores_KT.tolist(), items.reasons, strict=True)
        return recommender_service_pb2.RecommendResponse(
            # As mappings: protobuf fills a list of them in half the time that a list of messages takes to build and copy.
            items=[
                {"item_id": item_id, "score": score, "task_scores": task_scores, "reasons": reasons}
                for item_id, score, task_scores, reasons in rows
            ],
            task_names=self._spec.task_names,
            model_version="" if version is None else f"{version.epoch}.{version.seq_max}",
            seq_min=0 if version is None else version.seq_min,
            seq_max=0 if version is None else version.seq_max,
            degraded_reason=",".join(answer.degraded),
            features_block=answer.features_block,
            schema_hash=self._spec.schema_hash,
            logged={
                "item_ids": items.item_ids,
                "scores": [] if version is None else scores,
                "reasons": list(map(",".join, items.reasons)),
            },
        )
