"""A client of the router's Generate: streams an answer, tries again when it is cut, and keeps count."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import numpy as np
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc

_RETRYABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
_TIMEOUT_S = 120.0
_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One whole answer. `titles` are those of the passages it was given, `ttft_ms` runs from the call to the first text."""

    request_id: str
    text: str
    model_version: str
    prompt_version: str
    degraded_reason: str
    titles: list[str]
    ttft_ms: float


class AnswerClient:
    """Asks the router. `failed` counts calls without an answer after all tries."""

    def __init__(self, router: str) -> None:
        """Take the router's address (host:port)."""
        self._channel = grpc.aio.insecure_channel(router, options=[("grpc.max_reconnect_backoff_ms", 1000)])
        self._router = router_service_pb2_grpc.RouterServiceStub(self._channel)
        self._ttft_ms: list[float] = []
        self.failed = self.retried = 0

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def ask(self, request: router_service_pb2.GenerateRequest, *, on_text: Callable[[str], None] | None = None) -> Answer:
        """Return the answer; `on_text` sees each piece as it comes.

        Raises:
            RuntimeError: no answer after three tries; says what the last one ended with.
        """
        for attempt in range(_TRIES):
            try:
                answer = await self.try_once(request, on_text=on_text)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _RETRYABLE or attempt == _TRIES - 1:
                    self.failed += 1
                    raise RuntimeError(f"no answer to {request.question!r}: {error.code().name}: {error.details()}") from error
                self.retried += 1
                await asyncio.sleep(0.5 * (attempt + 1))
            else:
                self._ttft_ms.append(answer.ttft_ms)
                return answer
        raise AssertionError("unreachable: the last try returns or raises")

    async def try_once(self, request: router_service_pb2.GenerateRequest, *, on_text: Callable[[str], None] | None = None) -> Answer:
        """As `ask`, without a second try and without counting.

        Raises:
            grpc.aio.AioRpcError: as it came.
        """
        header, pieces, started, ttft_ms = router_service_pb2.GenerateHeader(), [], time.monotonic(), 0.0
        async for message in self._router.Generate(request, timeout=_TIMEOUT_S):
            if message.HasField("header"):
                header = message.header
            if message.text:
                ttft_ms = ttft_ms or (time.monotonic() - started) * 1e3
                pieces.append(message.text)
                if on_text is not None:
                    on_text(message.text)
        return Answer(
            request_id=header.request_id,
            text="".join(pieces).strip(),
            model_version=header.model_version,
            prompt_version=header.prompt_version,
            degraded_reason=header.degraded_reason,
            titles=[passage.title for passage in header.passages],
            ttft_ms=ttft_ms,
        )

    def ttft_percentiles(self) -> dict[str, float | None]:
        """Return p50 and p95 of the time to the first text, in milliseconds; None before the first answer."""
        if not self._ttft_ms:
            return {"p50": None, "p95": None}
        p50, p95 = np.percentile(self._ttft_ms, [50, 95])
        return {"p50": float(p50), "p95": float(p95)}
