"""The tuner's gRPC clients: router and llm (answers), prompt assembler (prompts), trainer (aliases)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc
import grpc.aio
from tunemesh.llm.v1 import llm_admin_service_pb2, llm_admin_service_pb2_grpc
from tunemesh.prompt_assembler.v1 import prompt_assembler_service_pb2, prompt_assembler_service_pb2_grpc
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc
from tunemesh.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc

from services.common.events.chat import Message, Passage
from services.common.events.wire.chat import messages_of, passage_messages
from services.common.language.adapter_name import AdapterName
from services.common.language.aliases import BASE_MODEL, llm_alias
from services.common.platform.errors import Conflict, NotFound, Overloaded, ServiceError, Unavailable
from services.common.platform.grpc_client import service_error
from services.common.platform.traceparent import outgoing_metadata
from services.tuner.neighbours import Live

_DEFAULT_TEMPLATE = "answer"
_USER = "tuner"
_CALL_TIMEOUT_S = 10.0
_STATUS_TIMEOUT_S = 2.0
_ANSWER_TIMEOUT_S = 60.0
_LIVE_PROBE_S = 0.1
_LIVE_PROBE_TIMEOUT_S = 10.0

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class WrongModel(Unavailable):
    """The answer is not from the model that was asked, or is degraded: it says nothing about a candidate. Retrying may help."""


def translated(error: grpc.aio.AioRpcError, what: str) -> ServiceError:
    """Return the error of a call as one of ours; a status that only a defect explains is Unavailable with its name."""
    return service_error(error.code(), f"{what}: {error.code().name}: {error.details() or 'no detail'}")


class Retries:
    """Calls again what may pass: Unavailable and Overloaded, with doubling pauses."""

    def __init__(self, *, attempts: int, first_pause_s: float) -> None:
        """Make up to `attempts` calls."""
        self._attempts, self._first_pause_s = attempts, first_pause_s

    async def call(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Return the first success, or raise the last error."""
        for number in range(self._attempts):
            try:
                return await attempt()
            except (Unavailable, Overloaded) as error:
                if number + 1 == self._attempts:
                    raise
                pause_s = self._first_pause_s * 2**number
                _log.warning("tried again in %.1f s: %s", pause_s, error)
                await asyncio.sleep(pause_s)
        raise AssertionError("unreachable: the last attempt returns or raises")


class GrpcServing:
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

    async def load(self, name: AdapterName) -> None:
        """See `tune.Serving`. Repeating it is harmless, so it is retried."""

        async def once() -> None:
            request = llm_admin_service_pb2.LoadAdapterRequest(name=str(name))
            try:
                await self._admin.LoadAdapter(request, timeout=self._load_timeout_s, metadata=outgoing_metadata())
            except grpc.aio.AioRpcError as error:
                raise translated(error, f"the llm did not load {name}") from error

        await self._retries.call(once)

    async def unload(self, name: AdapterName) -> None:
        """See `tune.Serving`."""
        request = llm_admin_service_pb2.UnloadAdapterRequest(name=str(name))
        try:
            await self._admin.UnloadAdapter(request, timeout=self._load_timeout_s, metadata=outgoing_metadata())
        except grpc.aio.AioRpcError as error:
            raise translated(error, f"the llm did not unload {name}") from error

    async def answer(self, task: str, question: str, context: Sequence[Passage], adapter: str) -> str:
        """See `tune.Serving`."""

        async def once() -> str:
            request = router_service_pb2.GenerateRequest(
                user_id=_USER,
                task=task,
                question=question,
                context=passage_messages(context),
                adapter=adapter,
                sampling={"max_tokens": self._max_answer_tokens},
            )
            header, text = await self._generate(request, _ANSWER_TIMEOUT_S)
            expected = self._base_name if adapter == BASE_MODEL else adapter
            if header.model_version != expected:
                raise WrongModel(f"{expected} was asked and {header.model_version or 'nobody'} answered")
            if header.degraded_reason:
                raise WrongModel(f"the router's answer for {expected} is degraded ({header.degraded_reason})")
            return text

        return await self._retries.call(once)

    async def wait_live(self, task: str, name: AdapterName) -> bool:
        """See `tune.Serving`. Asks as a user does, one token each time."""
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


class GrpcPrompts:
    """Prompts from PromptAssemblerService, with the template that the router would take: the task's own, else "answer"."""

    def __init__(self, channel: grpc.aio.Channel, retries: Retries) -> None:
        """The channel is closed by its owner."""
        self._stub = prompt_assembler_service_pb2_grpc.PromptAssemblerServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        self._retries = retries

    async def assemble(self, task: str, question: str, passages: Sequence[Passage]) -> tuple[Message, ...]:
        """Return the messages.

        Raises:
            Unavailable: the assembler cannot be reached, or answers degraded: not as it would answer a user.
            NotFound, InvalidInput: as it says.
        """
        try:
            return await self._retries.call(lambda: self._once(task, question, passages))
        except NotFound:
            return await self._retries.call(lambda: self._once(_DEFAULT_TEMPLATE, question, passages))

    async def _once(self, template: str, question: str, passages: Sequence[Passage]) -> tuple[Message, ...]:
        request = prompt_assembler_service_pb2.AssembleRequest(template=template, question=question, passages=passage_messages(passages))
        try:
            response = await self._stub.Assemble(request, timeout=_CALL_TIMEOUT_S, metadata=outgoing_metadata())
        except grpc.aio.AioRpcError as error:
            raise translated(error, f"the prompt assembler made no prompt from template {template!r}") from error
        if response.degraded_reason:
            raise Unavailable(f"the prompt assembler's answer is degraded ({response.degraded_reason})")
        return messages_of(response.messages)


class GrpcControl:
    """control.v1 through its owner, TrainerService."""

    def __init__(self, channel: grpc.aio.Channel, *, actor: str, retries: Retries) -> None:
        """The channel is closed by its owner; `actor` is recorded with every change."""
        self._stub = trainer_service_pb2_grpc.TrainerServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        self._actor, self._retries = actor, retries

    async def live(self, task: str) -> Live:
        """Return what llm/TASK/production points at; the base, version 0, when it was never set. Raises Unavailable."""
        return await self._retries.call(lambda: self._live_once(task))

    async def set_live(self, task: str, name: AdapterName, expected_version: int) -> None:
        """Point llm/TASK/production at `name`.

        Raises:
            Conflict: somebody else moved it since it was read, so that the candidate was not compared with what is live now; or the
                trainer does not let it point there.
            Unavailable: the trainer cannot be reached; the alias may have moved all the same.
        """
        alias = llm_alias(task)

        async def once() -> None:
            request = trainer_service_pb2.SetAliasRequest(
                alias=alias, target=str(name), expected_version=expected_version, actor=self._actor
            )
            try:
                await self._stub.SetAlias(request, timeout=_CALL_TIMEOUT_S, metadata=outgoing_metadata())
            except grpc.aio.AioRpcError as error:
                raise translated(error, f"{alias} was not moved to {name}") from error

        try:
            await self._retries.call(once)
        except Conflict:
            now = await self.live(task)
            if now.version == expected_version:  # nobody moved it: the trainer says what else is wrong
                raise
            # A first attempt whose answer was lost looks like somebody else's move.
            if now != Live(str(name), expected_version + 1):
                raise Conflict(
                    f"{alias} was moved to {now.target} while {name} was judged, which was not compared with that: start another tune"
                ) from None

    async def is_paused(self) -> bool:
        """Return whether learning is paused. Raises Unavailable when the trainer cannot say."""
        try:
            status = await self._stub.GetStatus(trainer_service_pb2.GetStatusRequest(), timeout=_STATUS_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise translated(error, "whether learning is paused is not known") from error
        return bool(status.paused)

    async def _live_once(self, task: str) -> Live:
        alias = llm_alias(task)
        try:
            found = await self._stub.GetAlias(
                trainer_service_pb2.GetAliasRequest(alias=alias), timeout=_CALL_TIMEOUT_S, metadata=outgoing_metadata()
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return Live(BASE_MODEL, 0)
            raise translated(error, f"{alias} could not be read") from error
        return Live(found.target, found.version)
