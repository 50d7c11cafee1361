"""Moving an alias of the language model back, and waiting until the mesh answers with it. Knows no terminal.

The alias moves by compare-and-set through the trainer's control API, which alone writes control.v1. What an alias may point at is
checked first, by the part that will follow it; a part that is down does not stop a rollback.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import grpc
from tunemesh.common.v1.chat_pb2 import Sampling
from tunemesh.llm.v1 import llm_admin_service_pb2, llm_admin_service_pb2_grpc
from tunemesh.prompt_assembler.v1 import prompt_assembler_service_pb2, prompt_assembler_service_pb2_grpc
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc
from tunemesh.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc

from services.common.language.aliases import BASE_MODEL, llm_alias, prompt_alias
from services.common.platform.errors import Conflict, InvalidInput, ServiceError, Unavailable
from services.mesh.operate.rpc import Client

ACTOR = "tunemesh rollback"
PROBE_USER = "tunemesh-operate"
_ADAPTER_SEPARATOR = "--"
# With these the base answers because something is missing, not because the alias says so.
_NOT_BY_CHOICE = ("adapter_unavailable", "aliases_unknown")
_POLL_S = 0.1
_PROBE_TIMEOUT_MS = 10_000
_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_VERSION = re.compile(r"v([1-9][0-9]{0,8})")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Move:
    """One alias moved: from where to where, the version that it has now, and when control.v1 had it (monotonic seconds)."""

    alias: str
    before: str
    after: str
    version: int
    moved_at_s: float


class Follower(Protocol):
    """What follows an alias: the llm or the prompt assembler."""

    def check(self, target: str) -> None:
        """Return when the alias may point at the target, which is made ready where that can be done beforehand.

        Raises:
            InvalidInput, NotFound: it may not.
            Unavailable, Conflict: that cannot be said, or it cannot be made ready, now.
        """
        ...

    def answers_with(self) -> str:
        """Return the target that the mesh answers with now; raise Unavailable when it does not answer."""
        ...

    @property
    def first(self) -> str:
        """What answered before the alias was set for the first time; empty: nothing."""
        ...


def parse_alias(text: str) -> str:
    """Return the whole alias: "llm/TASK" and "prompt/NAME" mean their "production".

    Raises:
        InvalidInput: neither of them.
    """
    kind, *names = text.split("/")
    if len(names) not in (1, 2) or not all(_NAME.fullmatch(name) for name in names):
        raise InvalidInput(f"{text!r} is no alias: use llm/TASK, prompt/NAME or prompt/NAME/LABEL")
    if kind == "llm" and names[1:] in ([], ["production"]):
        return llm_alias(names[0])
    if kind == "prompt":
        return prompt_alias(names[0], names[1] if len(names) == 2 else "production")
    raise InvalidInput(f"{text!r} is no alias that can be rolled back: use llm/TASK, prompt/NAME or prompt/NAME/LABEL")


def move(alias: str, to: str, trainer: Client, follower: Follower, *, allow_unjudged: bool, timeout_ms: int) -> Move:
    """Point an alias at `to` or, when that is empty, at what it pointed at before.

    Args:
        alias: whole; see parse_alias.
        to: see above.
        trainer: the trainer's control API.
        follower: of the alias.
        allow_unjudged: even at one that the adapter gate refused or has not judged.
        timeout_ms: of each call.
    Raises:
        NotFound: the alias was never set, or no such target exists.
        InvalidInput: the alias has had one target only, or points at `to` already.
        Conflict: somebody else moved the alias meanwhile, or the adapter gate did not accept the adapter; nothing was changed.
        Unavailable: the trainer does not answer, or its broker.
    """
    stub = trainer_service_pb2_grpc.TrainerServiceStub(trainer.channel)  # type: ignore[no-untyped-call]
    now = trainer.call(stub.GetAlias, trainer_service_pb2.GetAliasRequest(alias=alias), timeout_ms=timeout_ms)
    target = to or now.previous_target or follower.first
    if not target:
        raise InvalidInput(f"{alias} has had one target only ({now.target}): say where to go with --to")
    if target == now.target:
        raise InvalidInput(f"{alias} points at {target} already")
    request = trainer_service_pb2.SetAliasRequest(
        alias=alias, target=target, expected_version=now.version, actor=ACTOR, allow_unjudged=allow_unjudged, validate_only=True
    )
    # First, for the follower's check loads an adapter, and another one may have to go for it.
    trainer.call(stub.SetAlias, request, timeout_ms=timeout_ms)
    try:
        follower.check(target)
    except (Unavailable, Conflict) as error:
        _log.warning("%s; the alias is moved all the same", error)
    request.validate_only = False
    answer = trainer.call(stub.SetAlias, request, timeout_ms=timeout_ms)
    return Move(alias, now.target, target, answer.version, time.monotonic())


def wait_until_live(moved: Move, follower: Follower, *, wait_ms: int) -> float:
    """Return the seconds from the move until the mesh answered with the target.

    Raises:
        Unavailable: it did not within `wait_ms`; the alias stays where it is now.
    """
    said = ""
    while True:
        try:
            said = follower.answers_with()
        except ServiceError as error:
            said = str(error)
        waited_s = time.monotonic() - moved.moved_at_s
        if said == moved.after:
            return waited_s
        if waited_s > wait_ms / 1e3:
            raise Unavailable(f"{moved.alias} points at {moved.after} since {waited_s:.1f} s, but the mesh does not answer with it: {said}")
        time.sleep(_POLL_S)


class LlmFollower:
    """The adapter of one task: loaded by the llm, answered with by the router."""

    first = BASE_MODEL

    def __init__(self, task: str, router: Client, admin: Client, *, load_timeout_ms: int) -> None:
        """`admin` is the llm's private port."""
        self._task, self._router, self._admin, self._load_timeout_ms = task, router, admin, load_timeout_ms

    def check(self, target: str) -> None:
        """Load the adapter; one that is loaded is left as it is."""
        if target == BASE_MODEL:
            return
        stub = llm_admin_service_pb2_grpc.LlmAdminServiceStub(self._admin.channel)  # type: ignore[no-untyped-call]
        self._admin.call(stub.LoadAdapter, llm_admin_service_pb2.LoadAdapterRequest(name=target), timeout_ms=self._load_timeout_ms)

    def answers_with(self) -> str:
        """Ask the router for one token; only the first message matters. The answer is logged under the user `PROBE_USER`."""
        stub = router_service_pb2_grpc.RouterServiceStub(self._router.channel)  # type: ignore[no-untyped-call]
        request = router_service_pb2.GenerateRequest(
            user_id=PROBE_USER, task=self._task, question="Are you there?", retrieve=False, sampling=Sampling(max_tokens=1)
        )
        stream = stub.Generate(request, timeout=_PROBE_TIMEOUT_MS / 1e3)
        header = router_service_pb2.GenerateHeader()
        try:
            for message in stream:
                if message.HasField("header"):
                    header = message.header
        except grpc.RpcError as error:
            raise self._router.translated(error) from error
        if any(reason in header.degraded_reason for reason in _NOT_BY_CHOICE):
            raise Unavailable(f"the {self._router.name} answers with {header.model_version} only because of {header.degraded_reason}")
        return header.model_version if _ADAPTER_SEPARATOR in header.model_version else BASE_MODEL


class PromptFollower:
    """One label of a prompt template, as the prompt assembler resolves it."""

    first = ""

    def __init__(self, template: str, label: str, assembler: Client, *, timeout_ms: int) -> None:
        """`assembler` is the prompt assembler."""
        self._template, self._label, self._assembler, self._timeout_ms = template, label, assembler, timeout_ms

    def check(self, target: str) -> None:
        """Check that the prompt assembler has the version."""
        version = _VERSION.fullmatch(target)
        if version is None:
            raise InvalidInput(f"{target!r} is no version of a template: use v1, v2, …")
        self._get(prompt_assembler_service_pb2.GetTemplateRequest(name=self._template, version=int(version[1])))

    def answers_with(self) -> str:
        """Ask which version the label means now."""
        return f"v{self._get(prompt_assembler_service_pb2.GetTemplateRequest(name=self._template, label=self._label))}"

    def _get(self, request: prompt_assembler_service_pb2.GetTemplateRequest) -> int:
        stub = prompt_assembler_service_pb2_grpc.PromptAssemblerServiceStub(self._assembler.channel)  # type: ignore[no-untyped-call]
        answer = self._assembler.call(stub.GetTemplate, request, timeout_ms=self._timeout_ms)
        return int(answer.template.version)


def follower_of(alias: str, connected: Callable[[str], Client], *, timeout_ms: int, load_timeout_ms: int) -> Follower:
    """Return what follows an alias that `parse_alias` gave; `connected` returns the client of a part."""
    kind, *names = alias.split("/")
    if kind == "llm":
        return LlmFollower(names[0], connected("router"), connected("llm_admin"), load_timeout_ms=load_timeout_ms)
    return PromptFollower(names[0], names[1], connected("prompt_assembler"), timeout_ms=timeout_ms)
