"""Asks the router's Generate by `tunemesh_client`: streams an answer, tries again when it is cut, and keeps count."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tunemesh_client import AsyncClient, DeadlineExceeded, RetryPolicy, Sampling, TunemeshError

_TIMEOUT_S = 120.0
_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked: by which task, with which passages, at what length."""

    text: str
    user_id: str
    task: str
    retrieve: bool = False
    source: str = ""
    max_tokens: int = 48


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
        # Tries again here, not in the client: a stream that was cut in its middle is asked again from the start.
        self._client = AsyncClient(router, retry=RetryPolicy(retries=0), generate_deadline_s=_TIMEOUT_S)
        self._ttft_ms: list[float] = []
        self.failed = self.retried = 0

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()

    async def ask(self, question: Question, *, on_text: Callable[[str], None] | None = None) -> Answer:
        """Return the answer; `on_text` sees each piece as it comes.

        Raises:
            RuntimeError: no answer after three tries; says what the last one ended with.
        """
        for attempt in range(_TRIES):
            try:
                answer = await self.try_once(question, on_text=on_text)
            except TunemeshError as error:
                may_retry = error.retry_helps and not isinstance(error, DeadlineExceeded)
                if not may_retry or attempt == _TRIES - 1:
                    self.failed += 1
                    raise RuntimeError(f"no answer to {question.text!r}: {error}") from error
                self.retried += 1
                await asyncio.sleep(0.5 * (attempt + 1))
            else:
                self._ttft_ms.append(answer.ttft_ms)
                return answer
        raise AssertionError("unreachable: the last try returns or raises")

    async def try_once(self, question: Question, *, on_text: Callable[[str], None] | None = None) -> Answer:
        """As `ask`, without a second try and without counting.

        Raises:
            TunemeshError: as it came.
        """
        stream = self._client.generate(
            question.user_id,
            question.text,
            task=question.task,
            retrieve=question.retrieve,
            retrieval_source=question.source,
            sampling=Sampling(max_tokens=question.max_tokens),
        )
        started, ttft_ms = time.monotonic(), 0.0
        async for piece in stream:
            ttft_ms = ttft_ms or (time.monotonic() - started) * 1e3
            if on_text is not None:
                on_text(piece)
        return Answer(
            request_id=stream.request_id,
            text=stream.text.strip(),
            model_version=stream.model_version,
            prompt_version=stream.prompt_version,
            degraded_reason=stream.degraded_reason,
            titles=[passage.title for passage in stream.passages],
            ttft_ms=ttft_ms,
        )

    def ttft_percentiles(self) -> dict[str, float | None]:
        """Return p50 and p95 of the time to the first text, in milliseconds; None before the first answer."""
        if not self._ttft_ms:
            return {"p50": None, "p95": None}
        p50, p95 = np.percentile(self._ttft_ms, [50, 95])
        return {"p50": float(p50), "p95": float(p95)}
