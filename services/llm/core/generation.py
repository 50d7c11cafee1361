"""What a generation may ask for, how many run at a time, and what each message of the answer says. Pure but for the engine passed in."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

from services.common.events.chat import ROLES, Message, Sampling, check_roles, check_sampling
from services.common.events.limits import MAX_ID_BYTES, check_text
from services.common.language.control_tokens import harmless
from services.common.platform.errors import InvalidInput, Overloaded, Unavailable

MAX_MESSAGES = 256
MAX_COUNTED_TEXTS = 256
MAX_SCORED_BYTES = 64 * 1024


class PromptTooLong(InvalidInput):
    """The prompt leaves no room for an answer. Retrying does not help; a shorter prompt does."""


class BadRequest(InvalidInput):
    """A field is out of range; the message names it. Retrying does not help."""


class TooManyRunning(Overloaded):
    """As many generations run and wait as may. Retrying later helps."""


class EngineGone(Unavailable):
    """The engine died, or let go of the request. Retrying helps when it is back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One request for an answer. `adapter` is empty for the base model."""

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    adapter: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What the engine gave since the piece before. The last one has a finish_reason, "stop" or "length"."""

    text: str
    num_tokens: int
    finish_reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One message of the answer: the first names the model, the last says why it ended and what it cost."""

    text: str
    model_version: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """How likely an answer is: the sum of its tokens' log-probabilities (natural), and how many tokens these are."""

    log_likelihood: float
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one request, and of all together."""

    max_prompt_bytes: int
    max_tokens: int
    default_max_tokens: int
    max_running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAdapter:
    """An adapter as the engine knows it."""

    name: str
    lora_id: int
    folder: str


class Engine(Protocol):
    """The model."""

    @property
    def context_tokens(self) -> int:
        """Most tokens of a prompt and its answer together."""
        ...

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Texts that the tokenizer turns into control tokens, such as the end of a turn."""
        ...

    async def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's token ids, with the opening of the assistant's turn.

        Raises:
            InvalidInput: the model's chat template does not take these messages.
        """
        ...

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""
        ...

    async def encode_text(self, text: str) -> list[int]:
        """Return the token ids of a text by itself, without special tokens."""
        ...

    async def log_likelihood(self, tokens: list[int], num_scored: int, adapter: LoadedAdapter | None) -> float:
        """Return the sum of the log-probabilities of the last `num_scored` tokens, each after those before it.

        Raises:
            EngineGone: the engine died.
        """
        ...

    def generate(self, tokens: list[int], sampling: Sampling, adapter: LoadedAdapter | None) -> AsyncGenerator[Piece, None]:
        """Yield the answer as it comes. Closing or cancelling it stops the generation.

        Raises:
            EngineGone: the engine died.
        """
        ...


class Adapters(Protocol):
    """The loaded adapters."""

    def lease(self, name: str) -> AbstractContextManager[LoadedAdapter]:
        """Return the adapter for the time of a request, in which it is not unloaded.

        Raises:
            NotFound: it is not loaded.
        """
        ...


class Generator:
    """Answers Generate and CountTokens."""

    def __init__(self, engine: Engine, adapters: Adapters, *, base_model: str, limits: Limits) -> None:
        """`base_model` is the version that an answer without an adapter carries."""
        self._engine, self._adapters, self._base_model, self._limits = engine, adapters, base_model, limits
        self._running = 0

    @property
    def running(self) -> int:
        """Generations that run or wait for the engine now."""
        return self._running

    async def generate(self, query: Query) -> AsyncGenerator[Part, None]:
        """Yield the answer's parts: at least one, the first with `model_version`, the last with `finish_reason` and the usage.

        Raises:
            BadRequest: a field is out of range.
            PromptTooLong: no room is left for an answer; the message says by how much.
            AdapterNotLoaded: the adapter cannot serve now.
            TooManyRunning: the bound is reached.
            EngineGone: the engine died, before or between parts.
        """
        check(query, self._limits)
        self._check_room()
        self._running += 1
        try:
            if query.adapter:
                with self._adapters.lease(query.adapter) as adapter:
                    async with aclosing(self._answer(query, adapter)) as parts:
                        async for part in parts:
                            yield part
            else:
                async with aclosing(self._answer(query, None)) as parts:
                    async for part in parts:
                        yield part
        finally:
            self._running -= 1

    async def _answer(self, query: Query, adapter: LoadedAdapter | None) -> AsyncGenerator[Part, None]:
        messages = [self._harmless(message) for message in query.messages]
        tokens = await self._engine.encode_chat(messages)
        sampling = replace(query.sampling, max_tokens=self._num_tokens(len(tokens), query.sampling.max_tokens))
        model_version = adapter.name if adapter is not None else self._base_model
        num_tokens, waiting = 0, model_version
        async with aclosing(self._engine.generate(tokens, sampling, adapter)) as pieces:
            async for piece in pieces:
                num_tokens += piece.num_tokens
                if piece.finish_reason:
                    yield Part(
                        text=piece.text,
                        model_version=waiting,
                        finish_reason=piece.finish_reason,
                        prompt_tokens=len(tokens),
                        completion_tokens=num_tokens,
                    )
                    return
                if piece.text or waiting:
                    yield Part(text=piece.text, model_version=waiting)
                    waiting = ""
        raise EngineGone("the engine ended the answer without a reason; try again")

    async def score(self, query: Query, answer: str) -> Score:
        """Return how likely an answer is after the query's prompt; its sampling is not looked at.

        Raises:
            BadRequest, PromptTooLong, AdapterNotLoaded, TooManyRunning, EngineGone: as `generate`.
        """
        check(query, self._limits)
        check_text("answer", answer, MAX_SCORED_BYTES, BadRequest)
        self._check_room()
        self._running += 1
        try:
            prompt = await self._engine.encode_chat([self._harmless(message) for message in query.messages])
            said = await self._engine.encode_text(harmless(answer, self._engine.control_tokens))
            # One token is generated behind the answer: the engine takes no request without.
            if len(said) >= self._num_tokens(len(prompt), self._engine.context_tokens):
                raise PromptTooLong(
                    f"prompt and answer have {len(prompt)} and {len(said)} tokens: "
                    f"the model takes {self._engine.context_tokens - 1} of both"
                )
            with self._adapters.lease(query.adapter) if query.adapter else nullcontext() as adapter:
                return Score(await self._engine.log_likelihood([*prompt, *said], len(said), adapter), len(said))
        finally:
            self._running -= 1

    def _check_room(self) -> None:
        if self._running >= self._limits.max_running:
            raise TooManyRunning(f"{self._running} generations run already, as many as may; try again later")

    def _num_tokens(self, prompt_tokens: int, max_tokens: int) -> int:
        """Return how many tokens may be generated: what was asked for, cut to the room that the prompt leaves."""
        context = self._engine.context_tokens
        room = context - prompt_tokens
        if room < 1:
            raise PromptTooLong(
                f"the prompt has {prompt_tokens} tokens, {prompt_tokens - context + 1} too many: "
                f"the model takes {context} with at least one of the answer"
            )
        return min(max_tokens or self._limits.default_max_tokens, room)

    def _harmless(self, message: Message) -> Message:
        """Keep a message's text from ending its turn or opening another."""
        content = harmless(message.content, self._engine.control_tokens)
        return message if content is message.content else replace(message, content=content)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text.

        Raises:
            BadRequest: too many texts, or too much text.
        """
        if len(texts) > MAX_COUNTED_TEXTS:
            raise BadRequest(f"texts: there are {len(texts)}, at most {MAX_COUNTED_TEXTS} are counted in one call")
        num_bytes = sum(len(text.encode()) for text in texts)
        if num_bytes > self._limits.max_prompt_bytes:
            raise BadRequest(f"texts: they have {num_bytes} bytes, at most {self._limits.max_prompt_bytes} are counted in one call")
        # As a message's text is put into a prompt.
        return await self._engine.count_tokens([harmless(text, self._engine.control_tokens) for text in texts])


def check(query: Query, limits: Limits) -> None:
    """Raise BadRequest, naming the field, unless the request can be tried."""
    check_text("request_id", query.request_id, MAX_ID_BYTES, BadRequest, min_bytes=0)
    _check_messages(query.messages, limits)
    check_sampling(query.sampling, limits.max_tokens, BadRequest)


def _check_messages(messages: Sequence[Message], limits: Limits) -> None:
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise BadRequest(f"messages: there are {len(messages)}, allowed are 1 to {MAX_MESSAGES}")
    check_roles("messages", messages, ROLES, BadRequest)
    for index, message in enumerate(messages):
        if message.role == "system" and index > 0:
            raise BadRequest(f"messages[{index}].role: only the first message can be the system's")
    if messages[-1].role != "user":
        raise BadRequest(f"messages[{len(messages) - 1}].role: the last message must be the user's, this is the {messages[-1].role}'s")
    if not messages[-1].content:
        raise BadRequest(f"messages[{len(messages) - 1}].content: it is empty")
    num_bytes = sum(len(message.content.encode()) for message in messages)
    if num_bytes > limits.max_prompt_bytes:
        raise BadRequest(f"messages: they have {num_bytes} bytes, at most {limits.max_prompt_bytes} are read")
