"""LlmService: proto -> domain, one call of the core, domain -> proto."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

import grpc.aio
from opentelemetry import trace
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from tunemesh.common.v1 import chat_pb2
from tunemesh.llm.v1 import llm_service_pb2 as pb
from tunemesh.llm.v1 import llm_service_pb2_grpc

from services.common.events.wire.chat import messages_of, sampling_of
from services.common.platform.errors import Unavailable
from services.llm.core.generation import Generator, Part, Query

Context = grpc.aio.ServicerContext[Any, Any]


class StillLoading(Unavailable):
    """The model is not loaded yet. Retrying helps when health says SERVING."""


class LlmServicer(llm_service_pb2_grpc.LlmServiceServicer):
    """Streams answers. Before `attach` every call is UNAVAILABLE."""

    def __init__(self, meter: Meter) -> None:
        """`meter` gets `llm.ttft` and `llm.duration` (ms), `llm.tokens` by kind, and the gauge `llm.running`."""
        self._generator: Generator | None = None
        self._ttft = meter.create_histogram("llm.ttft", unit="ms", description="From the request to its first text.")
        self._duration = meter.create_histogram("llm.duration", unit="ms", description="From the request to its last text.")
        self._tokens = meter.create_counter("llm.tokens", description="Tokens of finished generations, by kind (prompt, completion).")
        meter.create_observable_gauge("llm.running", [self._observe_running], description="Generations that run or wait.")

    def attach(self, generator: Generator) -> None:
        """The model is loaded: serve with it."""
        self._generator = generator

    def _observe_running(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(self._generator.running)] if self._generator is not None else []

    def _attached(self) -> Generator:
        if self._generator is None:
            raise StillLoading("the model is still being loaded")
        return self._generator

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncGenerator[pb.GenerateResponse, None]:  # noqa: ARG002 - gRPC's signature
        """Stream the answer. Errors: see the proto."""
        started = time.perf_counter()
        # "base" or "adapter", not the name: names are without bound.
        label = {"model": "adapter" if request.adapter else "base"}
        ttft_ms = 0.0
        async with aclosing(self._attached().generate(_to_query(request))) as parts:
            async for part in parts:
                if part.text and not ttft_ms:
                    ttft_ms = (time.perf_counter() - started) * 1e3
                    self._ttft.record(ttft_ms, label)
                if part.finish_reason:
                    self._duration.record((time.perf_counter() - started) * 1e3, label)
                    self._tokens.add(part.prompt_tokens, {"kind": "prompt", **label})
                    self._tokens.add(part.completion_tokens, {"kind": "completion", **label})
                    _describe(request, part, ttft_ms)
                yield _to_response(part)

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:  # noqa: ARG002 - gRPC's signature
        """Count. Errors: see the proto."""
        return pb.CountTokensResponse(counts=await self._attached().count_tokens(list(request.texts)))


def _to_query(request: pb.GenerateRequest) -> Query:
    return Query(
        messages=messages_of(request.messages),
        sampling=sampling_of(request.sampling),
        adapter=request.adapter,
        request_id=request.request_id,
    )


def _to_response(part: Part) -> pb.GenerateResponse:
    response = pb.GenerateResponse(text=part.text, model_version=part.model_version, finish_reason=part.finish_reason)
    if part.finish_reason:
        response.usage.CopyFrom(chat_pb2.TokenUsage(prompt_tokens=part.prompt_tokens, completion_tokens=part.completion_tokens))
    return response


def _describe(request: pb.GenerateRequest, last: Part, ttft_ms: float) -> None:
    """Neither prompt nor answer goes into the span: they may hold what users wrote about themselves."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attribute("tunemesh.request_id", request.request_id)
        span.set_attribute("tunemesh.adapter", request.adapter)
        span.set_attribute("tunemesh.prompt_tokens", last.prompt_tokens)
        span.set_attribute("tunemesh.completion_tokens", last.completion_tokens)
        span.set_attribute("tunemesh.finish_reason", last.finish_reason)
        span.set_attribute("tunemesh.ttft_ms", round(ttft_ms, 1))
