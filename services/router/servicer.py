"""RouterService: proto -> domain, one call of the core, domain -> proto."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Protocol, cast

import grpc.aio
from opentelemetry import trace
from opentelemetry.metrics import Meter
from tunemesh.common.v1 import recommendation_pb2
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc

from services.common.events.wire.attributes import typed_values
from services.common.events.wire.chat import messages_of, passage_messages, passages_of, sampling_of, usage_message
from services.common.platform.errors import InvalidInput
from services.router.core import Query, Recommendation, Router
from services.router.generation import Header, Piece
from services.router.generator import Generator
from services.router.question import Question


class Degradations(Protocol):
    """Takes note of answers that are not whole."""

    def note(self, reason: str) -> None:
        """Count one, by its reason."""
        ...


class RouterServicer(router_service_pb2_grpc.RouterServiceServicer):
    """The public API."""

    def __init__(self, router: Router, generator: Generator, degradations: Degradations, meter: Meter) -> None:
        """`router` and `generator` decide; `degradations` counts; `meter` gets the histogram `router.generate.ttft` (ms)."""
        self._router = router
        self._generator = generator
        self._degradations = degradations
        self._ttft = meter.create_histogram("router.generate.ttft", unit="ms", description="From the request to its first text.")

    async def Recommend(
        self, request: router_service_pb2.RecommendRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> router_service_pb2.RecommendResponse:
        """Rank the candidates, or recall and rank. Errors: see the proto."""
        query = Query(
            user_id=request.user_id,
            candidates=tuple(request.candidates),
            limit=request.limit,
            idempotency_key=request.idempotency_key,
            context=typed_values("context", request.context, InvalidInput),
            profile=typed_values("profile", request.profile, InvalidInput),
        )
        answer = await self._router.recommend(query, remaining_s=context.time_remaining())
        _describe(query, answer)
        reason = answer.ranking.degraded_reason
        if reason:
            self._degradations.note(reason)
        return _answer(answer)

    async def Generate(
        self, request: router_service_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[router_service_pb2.GenerateResponse]:
        """Answer a question, streamed. Errors: see the proto."""
        started = time.perf_counter()
        async with aclosing(self._generator.generate(_question(request), remaining_s=context.time_remaining())) as events:
            async for event in events:
                if isinstance(event, Header):
                    self._ttft.record((time.perf_counter() - started) * 1e3)
                    self._note(event)
                    yield router_service_pb2.GenerateResponse(header=_header(event))
                else:
                    yield _response(event)

    def _note(self, header: Header) -> None:
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attribute("tunemesh.request_id", header.request_id)
            span.set_attribute("tunemesh.model_version", header.model_version)
            span.set_attribute("tunemesh.prompt_version", header.prompt_version)
            span.set_attribute("tunemesh.num_passages", len(header.passages))
            span.set_attribute("tunemesh.degraded_reason", header.degraded_reason)
        if header.degraded_reason:
            for reason in header.degraded_reason.split(","):
                self._degradations.note(reason)


def _describe(query: Query, answer: Recommendation) -> None:
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attribute("tunemesh.request_id", answer.request_id)
        span.set_attribute("tunemesh.num_candidates", len(query.candidates))
        span.set_attribute("tunemesh.model_version", answer.ranking.model_version)
        span.set_attribute("tunemesh.degraded_reason", answer.ranking.degraded_reason)


def _answer(answer: Recommendation) -> router_service_pb2.RecommendResponse:
    ranking = answer.ranking
    response = router_service_pb2.RecommendResponse(
        request_id=answer.request_id,
        experiment=answer.experiment,
        variant=answer.variant,
        model_version=ranking.model_version,
        degraded_reason=ranking.degraded_reason,
    )
    if ranking.packed is None:
        response.task_names.extend(ranking.task_names)
        response.items.extend(cast("Sequence[recommendation_pb2.RankedItem]", ranking.items))  # the recommender's own messages
    else:
        response.MergeFromString(ranking.packed.shown)
    return response


def _question(request: router_service_pb2.GenerateRequest) -> Question:
    return Question(
        user_id=request.user_id,
        text=request.question,
        task=request.task,
        history=messages_of(request.history),
        context=passages_of(request.context),
        retrieve=request.retrieve,
        retrieval_source=request.retrieval_source,
        sampling=sampling_of(request.sampling),
        adapter=request.adapter,
    )


def _header(header: Header) -> router_service_pb2.GenerateHeader:
    return router_service_pb2.GenerateHeader(
        request_id=header.request_id,
        experiment=header.experiment,
        variant=header.variant,
        model_version=header.model_version,
        prompt_version=header.prompt_version,
        degraded_reason=header.degraded_reason,
        passages=passage_messages(header.passages),
    )


def _response(piece: Piece) -> router_service_pb2.GenerateResponse:
    response = router_service_pb2.GenerateResponse(text=piece.text, finish_reason=piece.finish_reason)
    if piece.usage is not None:
        response.usage.CopyFrom(usage_message(piece.usage))
    return response
