"""The router's gRPC clients for Generate: retriever, prompt assembler and llm; and its view of the live adapters.

What another service answers becomes one of `services.router.generation`'s errors here, with the address in its message and a log line
for a loss, at most one in ten seconds each.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

import grpc
import grpc.aio
from tunemesh.llm.v1 import llm_service_pb2, llm_service_pb2_grpc
from tunemesh.prompt_assembler.v1 import prompt_assembler_service_pb2, prompt_assembler_service_pb2_grpc
from tunemesh.retriever.v1 import retriever_service_pb2, retriever_service_pb2_grpc
from typing_extensions import override

from services.common.events.chat import MAX_TITLE_BYTES, Passage
from services.common.events.limits import MAX_QUERY_BYTES
from services.common.events.wire.chat import chat_messages, messages_of, passage_messages, passages_of, sampling_message, usage_of
from services.common.language.aliases import BASE_MODEL, AliasView, llm_alias
from services.common.platform.errors import InvalidInput, Overloaded
from services.common.platform.grpc_client import open_channel
from services.common.platform.traceparent import outgoing_metadata
from services.router.generation import (
    AdapterNotLoaded,
    Adapters,
    LanguageModel,
    ModelFailed,
    ModelUnavailable,
    Order,
    OutOfTime,
    Piece,
    Prompt,
    PromptAssembler,
    PromptAssemblerUnavailable,
    Retrieved,
    Retriever,
    RetrieverUnavailable,
    TemplateNotFound,
)
from services.router.question import Question

_LOG_EVERY_S = 10.0

_log = logging.getLogger(__name__)


class _Losses:
    """Logs a service's losses, at most one in ten seconds: with every answer of a busy router they would drown the rest."""

    def __init__(self, service: str, target: str) -> None:
        self._service, self._target = service, target
        self._next_s = 0.0

    def describe(self, error: grpc.aio.AioRpcError, timeout_s: float) -> str:
        """Return what happened, for the error's message and the log."""
        code = error.code()
        detail = f"nothing in {timeout_s * 1e3:.0f} ms" if code is grpc.StatusCode.DEADLINE_EXCEEDED else error.details() or ""
        message = f"the {self._service} at {self._target} answered {code.name}: {detail}"
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _LOG_EVERY_S
            _log.warning("%s", message)
        return message


def _cut(text: str, max_bytes: int) -> str:
    return text.encode()[:max_bytes].decode(errors="ignore")


class GrpcRetriever(Retriever):
    """Calls RetrieverService.Search."""

    def __init__(self, target: str, *, max_message_bytes: int) -> None:
        """Connects lazily. Must be made on the event loop that uses it."""
        self._channel = open_channel(target, max_message_bytes=max_message_bytes)
        self._stub = retriever_service_pb2_grpc.RetrieverServiceStub(self._channel)  # type: ignore[no-untyped-call] # generated
        self._losses = _Losses("retriever", target)

    @override
    async def search(self, question: str, *, source: str, limit: int, timeout_s: float) -> Retrieved:
        """Search with the question, cut to what the retriever takes when it is longer."""
        query = _cut(question.strip(), MAX_QUERY_BYTES)
        request = retriever_service_pb2.SearchRequest(query=query, limit=limit, source=source)
        try:
            response = await self._stub.Search(request, timeout=timeout_s, metadata=outgoing_metadata())
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise InvalidInput(f"retrieval_source: {error.details()}") from error
            raise RetrieverUnavailable(self._losses.describe(error, timeout_s)) from error
        # A catalogue's titles may be of any length; the prompt assembler would blame the caller for one.
        passages = tuple(replace(passage, title=_cut(passage.title, MAX_TITLE_BYTES)) for passage in passages_of(response.passages))
        return Retrieved(passages=passages, degraded_reason=response.degraded_reason)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


class GrpcPromptAssembler(PromptAssembler):
    """Calls PromptAssemblerService.Assemble, with the label "production"."""

    def __init__(self, target: str, *, max_message_bytes: int) -> None:
        """Connects lazily. Must be made on the event loop that uses it."""
        self._channel = open_channel(target, max_message_bytes=max_message_bytes)
        stub = prompt_assembler_service_pb2_grpc.PromptAssemblerServiceStub(self._channel)  # type: ignore[no-untyped-call] # generated
        self._stub = stub
        self._losses = _Losses("prompt assembler", target)

    @override
    async def assemble(self, template: str, question: Question, passages: Sequence[Passage], *, timeout_s: float) -> Prompt:
        request = prompt_assembler_service_pb2.AssembleRequest(
            template=template,
            question=question.text,
            passages=passage_messages(passages),
            history=chat_messages(question.history),
        )
        try:
            response = await self._stub.Assemble(request, timeout=timeout_s, metadata=outgoing_metadata())
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise TemplateNotFound(error.details() or "no such template") from error
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise InvalidInput(error.details() or "question: it does not fit the prompt") from error
            raise PromptAssemblerUnavailable(self._losses.describe(error, timeout_s)) from error
        return Prompt(
            messages=messages_of(response.messages),
            prompt_version=response.prompt_version,
            used_passage_ids=tuple(response.used_passage_ids),
            degraded_reason=response.degraded_reason,
        )

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


class GrpcLanguageModel(LanguageModel):
    """Calls LlmService.Generate and CountTokens."""

    def __init__(self, target: str, *, max_message_bytes: int) -> None:
        """Connects lazily. Must be made on the event loop that uses it."""
        self._target = target
        self._channel = open_channel(target, max_message_bytes=max_message_bytes)
        self._stub = llm_service_pb2_grpc.LlmServiceStub(self._channel)  # type: ignore[no-untyped-call] # generated
        self._losses = _Losses("llm", target)

    @override
    async def generate(self, order: Order, *, timeout_s: float) -> AsyncGenerator[Piece]:
        """Yield the answer as the llm streams it. Closing it early cancels the call, which stops the model."""
        request = llm_service_pb2.GenerateRequest(
            request_id=order.request_id,
            messages=chat_messages(order.messages),
            sampling=sampling_message(order.sampling),
            adapter=order.adapter,
        )
        call = self._stub.Generate(request, timeout=timeout_s, metadata=outgoing_metadata())
        try:
            async for response in call:
                yield _piece(response)
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, timeout_s) from error
        finally:
            call.cancel()

    def _translated(self, error: grpc.aio.AioRpcError, timeout_s: float) -> Exception:
        code, detail = error.code(), error.details() or ""
        if code is grpc.StatusCode.NOT_FOUND:
            return AdapterNotLoaded(f"adapter: {detail}")
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidInput(detail)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Overloaded(detail)
        message = self._losses.describe(error, timeout_s)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return OutOfTime(message)
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return ModelUnavailable(message)
        return ModelFailed(message)

    @override
    async def count_tokens(self, texts: Sequence[str], *, timeout_s: float) -> Sequence[int]:
        request = llm_service_pb2.CountTokensRequest(texts=texts)
        try:
            counts = (await self._stub.CountTokens(request, timeout=timeout_s, metadata=outgoing_metadata())).counts
        except grpc.aio.AioRpcError as error:
            raise ModelUnavailable(self._losses.describe(error, timeout_s)) from error
        if len(counts) != len(texts):
            raise ModelUnavailable(f"the llm at {self._target} counted {len(counts)} of {len(texts)} texts")
        return list(counts)

    @override
    async def wait_ready(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._channel.channel_ready()
        except TimeoutError as error:
            raise ModelUnavailable(f"no connection to the llm at {self._target} in {timeout_s * 1e3:.0f} ms; retry later") from error

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


def _piece(response: llm_service_pb2.GenerateResponse) -> Piece:
    usage = usage_of(response.usage) if response.HasField("usage") else None
    return Piece(text=response.text, finish_reason=response.finish_reason, usage=usage, model_version=response.model_version)


class LiveAdapters(Adapters):
    """`services.router.generation.Adapters` over the aliases of control.v1."""

    def __init__(self, aliases: AliasView) -> None:
        """A follower keeps `aliases` up to date."""
        self._aliases = aliases

    @override
    def live(self, task: str) -> str | None:
        """Return the live adapter's name, "" for the base model, or None until control.v1 has been read."""
        target = self._aliases.target(llm_alias(task))
        if target is None:
            return "" if self._aliases.is_known else None
        return "" if target == BASE_MODEL else target
