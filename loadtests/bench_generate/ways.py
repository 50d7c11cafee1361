"""The ways to ask the model for an answer, and one answer as its caller sees it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import aiohttp
import grpc.aio
from tunemesh.common.v1.chat_pb2 import ChatMessage, Sampling
from tunemesh.llm.v1 import llm_service_pb2, llm_service_pb2_grpc
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc

from services.common.language.base_model import PACKAGED_MODEL
from services.mesh.runner.embedded import LOOPBACK

Ask = Callable[[str, Sequence[ChatMessage]], AsyncIterator[tuple[str, int]]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer as its caller saw it."""

    ttft_ms: float
    num_tokens: int


class Degraded(Exception):
    """The router's answer lacks something, so it is no measure."""


def ask_router(channel: grpc.aio.Channel, max_tokens: int) -> Ask:
    """Return a way that takes the question; the prompt is assembled behind the router."""
    stub = router_service_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]

    async def ask(text: str, _: Sequence[ChatMessage]) -> AsyncIterator[tuple[str, int]]:
        request = router_service_pb2.GenerateRequest(user_id="bench", question=text, sampling=Sampling(max_tokens=max_tokens))
        async for response in stub.Generate(request):
            if response.header.degraded_reason:
                raise Degraded(response.header.degraded_reason)
            yield response.text, response.usage.completion_tokens

    return ask


def ask_llm(channel: grpc.aio.Channel, max_tokens: int) -> Ask:
    """Return a way that takes the assembled messages."""
    stub = llm_service_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]

    async def ask(_: str, messages: Sequence[ChatMessage]) -> AsyncIterator[tuple[str, int]]:
        request = llm_service_pb2.GenerateRequest(request_id="bench", messages=messages, sampling=Sampling(max_tokens=max_tokens))
        async for response in stub.Generate(request):
            yield response.text, response.usage.completion_tokens

    return ask


def ask_http(session: aiohttp.ClientSession, port: int, max_tokens: int) -> Ask:
    """Return a way that takes the assembled messages, by server-sent events."""
    url = f"http://{LOOPBACK}:{port}/v1/chat/completions"

    async def ask(_: str, messages: Sequence[ChatMessage]) -> AsyncIterator[tuple[str, int]]:
        body = {
            "model": PACKAGED_MODEL,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        async with session.post(url, json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                text = event["choices"][0]["delta"].get("content") or "" if event["choices"] else ""
                yield text, (event.get("usage") or {}).get("completion_tokens", 0)

    return ask


async def answer(ask: Ask, text: str, messages: Sequence[ChatMessage]) -> Answer:
    """Read one stream to its end."""
    started = time.perf_counter()
    ttft_ms, num_tokens = 0.0, 0
    async for piece, tokens in ask(text, messages):
        if piece and not ttft_ms:
            ttft_ms = (time.perf_counter() - started) * 1e3
        num_tokens = max(num_tokens, tokens)
    if not ttft_ms or not num_tokens:
        raise RuntimeError("an answer without text or without usage")
    return Answer(ttft_ms, num_tokens)
