"""The running model over gRPC: the llm loads adapters, the router answers with them."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence

import grpc
import grpc.aio
from tunemesh.llm.v1 import llm_admin_service_pb2, llm_admin_service_pb2_grpc
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc
from typing_extensions import override

from services.common.events.chat import Message
from services.common.events.wire.chat import chat_messages, passage_messages
from services.common.language.adapter_name import AdapterName
from services.common.language.aliases import BASE_MODEL
from services.common.language.evaluation import Question
from services.common.platform.errors import ServiceError, Unavailable
from services.common.platform.traceparent import outgoing_metadata
from services.tuner.grpc_calls import Retries, translated
from services.tuner.neighbours import Answered, Serving

_USER = "tuner"
_ANSWER_TIMEOUT_S = 60.0
_LIVE_PROBE_S = 0.1
_LIVE_PROBE_TIMEOUT_S = 10.0
_log = logging.getLogger(__name__)


class WrongModel(Unavailable):
    """The answer is not from the model that was asked, or is degraded: it says nothing about a candidate. Retrying may help."""


class GrpcServing(Serving):
    """The running model: adapters through LlmAdminService, answers through the router, as users get them."""

    def __init__(
        self,
        router: grpc.aio.Channel,
        llm_admin: grpc.aio.Channel,
        *,
        base_name: str,
        max_answer_tokens: int,
        load_timeout_s: float,
        live_timeout_s: float,
        retries: Retries,
    ) -> None:
        """The channels are closed by their owner."""
        self._router = router_service_pb2_grpc.RouterServiceStub(router)  # type: ignore[no-untyped-call] # generated
        self._admin = llm_admin_service_pb2_grpc.LlmAdminServiceStub(llm_admin)  # type: ignore[no-untyped-call] # generated
        self._base_name, self._max_answer_tokens = base_name, max_answer_tokens
        self._load_timeout_s, self._live_timeout_s, self._retries = load_timeout_s, live_timeout_s, retries
        self._can_score = True

    @override
    async def load(self, name: AdapterName) -> None:
        """Load and warm the adapter. Repeating that is harmless, so it is retried."""

        async def once() -> None:
            request = llm_admin_service_pb2.LoadAdapterRequest(name=str(name))
            try:
                await self._admin.LoadAdapter(request, timeout=self._load_timeout_s, metadata=outgoing_metadata())
            except grpc.aio.AioRpcError as error:
                raise translated(error, f"the llm did not load {name}") from error

        await self._retries.call(once)

    @override
    async def unload(self, name: AdapterName) -> None:
        request = llm_admin_service_pb2.UnloadAdapterRequest(name=str(name))
        try:
            await self._admin.UnloadAdapter(request, timeout=self._load_timeout_s, metadata=outgoing_metadata())
        except grpc.aio.AioRpcError as error:
            raise translated(error, f"the llm did not unload {name}") from error

    @override
    async def answer(self, task: str, question: Question, adapter: str) -> Answered:

        async def once() -> Answered:
            request = router_service_pb2.GenerateRequest(
                user_id=_USER,
                task=task,
                question=question.question,
                context=passage_messages(question.context),
                retrieve=question.retrieve,
                adapter=adapter,
                sampling={"max_tokens": self._max_answer_tokens, "reproducible": True},
            )
            header, text = await self._generate(request, _ANSWER_TIMEOUT_S)
            expected = self._base_name if adapter == BASE_MODEL else adapter
            if header.model_version != expected:
                raise WrongModel(f"{expected} was asked for, but {header.model_version or 'no model'} answered")
            if header.degraded_reason:
                raise WrongModel(f"the router's answer for {expected} is degraded ({header.degraded_reason})")
            return Answered(text, header.prompt_version)

        return await self._retries.call(once)

    @override
    async def likelihood(self, messages: Sequence[Message], answer: str, adapter: str) -> float | None:
        """Return the geometric mean of the probabilities of an answer's tokens; None from an llm that scores no answers."""
        if not self._can_score:
            return None
        request = llm_admin_service_pb2.ScoreAnswerRequest(
            messages=chat_messages(messages), answer=answer, adapter="" if adapter == BASE_MODEL else adapter
        )

        async def once() -> float | None:
            try:
                score = await self._admin.ScoreAnswer(request, timeout=_ANSWER_TIMEOUT_S, metadata=outgoing_metadata())
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    self._can_score = False
                    return None
                raise translated(error, f"the llm did not score an answer of {adapter}") from error
            return math.exp(score.log_likelihood / score.num_tokens) if score.num_tokens else None

        return await self._retries.call(once)

    @override
    async def base_hash(self) -> str:

        async def once() -> str:
            try:
                listed = await self._admin.ListAdapters(
                    llm_admin_service_pb2.ListAdaptersRequest(), timeout=_LIVE_PROBE_TIMEOUT_S, metadata=outgoing_metadata()
                )
            except grpc.aio.AioRpcError as error:
                raise translated(error, "the llm did not say which base it serves") from error
            return str(listed.base_hash)

        return await self._retries.call(once)

    @override
    async def wait_live(self, task: str, name: AdapterName) -> bool:
        """Ask as a user does, one token each time, until the adapter answers; return False when that takes too long."""
        request = router_service_pb2.GenerateRequest(user_id=_USER, task=task, question="Hello", sampling={"max_tokens": 1})
        deadline = time.monotonic() + self._live_timeout_s
        while time.monotonic() < deadline:
            try:
                header, _ = await self._generate(request, _LIVE_PROBE_TIMEOUT_S)
                if header.model_version == str(name):
                    return True
            except ServiceError as error:
                _log.warning("whether %s is live cannot be seen: %s", name, error)
            await asyncio.sleep(_LIVE_PROBE_S)
        return False

    async def _generate(
        self, request: router_service_pb2.GenerateRequest, timeout_s: float
    ) -> tuple[router_service_pb2.GenerateHeader, str]:
        header, parts, is_whole = router_service_pb2.GenerateHeader(), [], False
        try:
            async for response in self._router.Generate(request, timeout=timeout_s, metadata=outgoing_metadata()):
                if response.HasField("header"):
                    header = response.header
                parts.append(response.text)
                is_whole = is_whole or bool(response.finish_reason)
        except grpc.aio.AioRpcError as error:
            raise translated(error, "the router did not answer") from error
        if not is_whole:
            raise Unavailable("the router's answer ended without its last message")
        return header, "".join(parts)
