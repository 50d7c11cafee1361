"""How an answer of the language model is made: passages, then a prompt, then the model's stream; and what each loss costs.

    retriever          lost: no passages                                   retrieval_unavailable
    prompt assembler   lost: the short prompt built in here                prompt_assembler_unavailable
    control.v1         not read yet: the base model                        aliases_unknown
    live adapter       not loaded: the base model                          adapter_unavailable
    llm                lost: one more attempt before the first text, then Unavailable; after it, AnswerCut

Free of I/O, clock and randomness: they are passed in. Knows neither gRPC nor Kafka.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from services.common.platform.errors import NotFound, ServiceError, Unavailable
from services.router.question import BASE_MODEL, DEFAULT_TASK, Message, Passage, Question, Sampling, checked

RETRIEVAL_UNAVAILABLE = "retrieval_unavailable"
PROMPT_ASSEMBLER_UNAVAILABLE = "prompt_assembler_unavailable"
ADAPTER_UNAVAILABLE = "adapter_unavailable"
ALIASES_UNKNOWN = "aliases_unknown"
PINNED_VARIANT = "pinned"
CANCELLED, ERROR = "cancelled", "error"

# Less than this is not worth an attempt.
_MIN_ATTEMPT_S = 0.005
# A task without a template of its own is not asked for again for so long.
_MISSING_TEMPLATE_S = 5.0
_MAX_MISSING_TEMPLATES = 1_000
_PLAIN_SYSTEM = "Answer the question briefly. Use the passages when they help."
# About a thousand tokens: fits every context length that is worth serving.
_PLAIN_PROMPT_CHARS = 4_000
_CONTROL_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>")


class RetrieverUnavailable(Unavailable):
    """The retriever did not answer in its time. The answer goes on without passages."""


class PromptAssemblerUnavailable(Unavailable):
    """The prompt assembler did not answer in its time. The answer goes on with the built-in prompt."""


class TemplateNotFound(NotFound):
    """The prompt assembler has no such template."""


class ModelUnavailable(Unavailable):
    """The llm could not be reached, broke off, or ran out of the request's time. Retrying helps once it is back."""


class ModelFailed(Exception):
    """The llm answered with a status that only a defect explains."""


class AdapterNotLoaded(NotFound):
    """The llm does not have the adapter. Pin another one, or load it first."""


class AnswerCut(Unavailable):
    """The stream broke after its first text. Retry from the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieved:
    """What the retriever found, best first."""

    passages: tuple[Passage, ...]
    degraded_reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model is given. `used_passage_ids` are in the prompt's order."""

    messages: tuple[Message, ...]
    prompt_version: str = ""
    used_passage_ids: tuple[str, ...] = ()
    degraded_reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the llm is asked for; an empty `adapter` is the base model."""

    request_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    adapter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one answer cost, in tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """New text of the answer. The first of the llm's names the model version; the last one has `finish_reason` and `usage`."""

    text: str = ""
    finish_reason: str = ""
    usage: Usage | None = None
    model_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the caller is told before the first text."""

    request_id: str
    experiment: str
    variant: str
    model_version: str
    prompt_version: str
    degraded_reason: str
    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One answer, whole or cut, for the log. Times are Unix milliseconds."""

    question: Question
    header: Header
    messages: tuple[Message, ...]
    answer: str
    finish_reason: str
    usage: Usage
    started_at_ms: int
    first_token_at_ms: int
    finished_at_ms: int


class Retriever(Protocol):
    """Finds passages."""

    async def search(self, question: str, *, source: str, limit: int, timeout_s: float) -> Retrieved:
        """Return at most `limit` passages.

        Raises:
            RetrieverUnavailable: not within `timeout_s`.
            InvalidInput: no such source.
        """
        ...


class PromptAssembler(Protocol):
    """Makes prompts from templates."""

    async def assemble(self, template: str, question: Question, passages: Sequence[Passage], *, timeout_s: float) -> Prompt:
        """Return the prompt for a question.

        Raises:
            TemplateNotFound, PromptAssemblerUnavailable.
            InvalidInput: the question alone is over the budget.
        """
        ...


class LanguageModel(Protocol):
    """Streams answers."""

    def generate(self, order: Order, *, timeout_s: float) -> AsyncGenerator[Piece]:
        """Yield the answer. Closing the generator stops the model.

        Raises:
            ModelUnavailable, AdapterNotLoaded, InvalidInput, Overloaded, ModelFailed.
        """
        ...

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once there is a connection.

        Raises:
            ModelUnavailable: not within `timeout_s`.
        """
        ...


class Adapters(Protocol):
    """Says which adapter answers a task."""

    def live(self, task: str) -> str | None:
        """Return the live adapter's name, "" for the base model, or None while that is not known."""
        ...


class GenerationLog(Protocol):
    """Takes answers without ever blocking a request."""

    def append(self, generation: Generation) -> None:
        """Keep the answer for Kafka, or drop and count it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationLimits:
    """Bounds and defaults of Generate; times in seconds."""

    default_deadline_s: float
    max_deadline_s: float
    retriever_timeout_s: float
    prompt_assembler_timeout_s: float
    llm_reconnect_s: float
    max_tokens: int
    num_passages: int


@dataclass(slots=True, kw_only=True)
class _Draft:
    """One answer in the making."""

    question: Question
    request_id: str
    variant: str
    deadline_s: float
    started_at_ms: int
    reasons: list[str] = field(default_factory=list)
    passages: tuple[Passage, ...] = ()
    prompt: Prompt = field(default_factory=lambda: Prompt(messages=()))
    adapter: str = ""
    model_version: str = ""
    texts: list[str] = field(default_factory=list)
    first_token_at_ms: int = 0
    finish_reason: str = ""
    usage: Usage | None = None
    header: Header | None = None

    def degrade(self, reasons: str) -> None:
        """Note what is missing; `reasons` may be several, joined by commas, or none."""
        self.reasons.extend(reason for reason in reasons.split(",") if reason and reason not in self.reasons)

    def open(self, now_ms: int) -> Header:
        """Make the header; from here on nothing is tried again."""
        self.first_token_at_ms = now_ms
        self.header = Header(
            request_id=self.request_id,
            experiment="",
            variant=self.variant,
            model_version=self.model_version,
            prompt_version=self.prompt.prompt_version,
            degraded_reason=",".join(self.reasons),
            passages=self.passages,
        )
        return self.header

    def take(self, piece: Piece) -> None:
        """Keep one piece of the llm's."""
        self.model_version = piece.model_version or self.model_version
        if piece.text:
            self.texts.append(piece.text)
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.usage = piece.usage or self.usage

    def cut(self, cause: Exception) -> AnswerCut:
        """A piece holds one token, or more when the llm was ahead of its reader: the count is a lower bound."""
        return AnswerCut(f"the answer was cut after {len(self.texts)} tokens ({cause}); retry from the start")


class Generator:
    """Answers Generate."""

    def __init__(
        self,
        retriever: Retriever,
        assembler: PromptAssembler,
        model: LanguageModel,
        adapters: Adapters,
        log: GenerationLog,
        *,
        limits: GenerationLimits,
        variant: str,
        monotonic_s: Callable[[], float],
        wall_ms: Callable[[], int],
        new_request_id: Callable[[int], str],
    ) -> None:
        """The clocks and `new_request_id` (Unix milliseconds -> UUIDv7) are passed in, so that tests choose them."""
        self._retriever = retriever
        self._assembler = assembler
        self._model = model
        self._adapters = adapters
        self._log = log
        self._limits = limits
        self._variant = variant
        self._monotonic_s = monotonic_s
        self._wall_ms = wall_ms
        self._new_request_id = new_request_id
        self._missing_until_s: dict[str, float] = {}

    async def generate(self, question: Question, *, remaining_s: float | None) -> AsyncGenerator[Header | Piece]:
        """Yield the header right before the first text, then the pieces as they come. Closing it stops the model.

        Args:
            question: as it came.
            remaining_s: seconds until the caller's deadline; None when it set none.
        Raises:
            InvalidInput: names the field.
            AdapterNotLoaded: of a pinned adapter only.
            Unavailable: no llm, or no time left.
            AnswerCut: after the first text.
            Overloaded: the llm sheds load.
        """
        draft = self._begin(question, remaining_s)
        await self._find_passages(draft)
        await self._make_prompt(draft)
        self._choose_adapter(draft)
        try:
            async with aclosing(self._pieces(draft)) as pieces:
                async for piece in pieces:
                    if draft.header is None and (piece.text or piece.finish_reason):
                        yield draft.open(self._wall_ms())
                    if draft.header is not None:
                        yield piece
        except (asyncio.CancelledError, GeneratorExit):
            draft.finish_reason = draft.finish_reason or CANCELLED
            raise
        except Exception:
            draft.finish_reason = ERROR
            raise
        finally:
            self._record(draft)

    def _begin(self, question: Question, remaining_s: float | None) -> _Draft:
        question = checked(question, max_tokens=self._limits.max_tokens)
        budget_s = self._limits.default_deadline_s if remaining_s is None else min(remaining_s, self._limits.max_deadline_s)
        now_ms = self._wall_ms()
        return _Draft(
            question=question,
            request_id=self._new_request_id(now_ms),
            variant=PINNED_VARIANT if question.adapter else self._variant,
            deadline_s=self._monotonic_s() + budget_s,
            started_at_ms=now_ms,
        )

    def _left_s(self, draft: _Draft) -> float:
        left_s = draft.deadline_s - self._monotonic_s()
        if left_s < _MIN_ATTEMPT_S:
            raise ModelUnavailable("no time is left before the deadline; retry with a longer one")
        return left_s

    async def _find_passages(self, draft: _Draft) -> None:
        question = draft.question
        draft.passages = question.context
        if question.context or not question.retrieve:
            return
        timeout_s = min(self._limits.retriever_timeout_s, self._left_s(draft))
        try:
            found = await self._retriever.search(
                question.text, source=question.retrieval_source, limit=self._limits.num_passages, timeout_s=timeout_s
            )
        except RetrieverUnavailable:
            draft.degrade(RETRIEVAL_UNAVAILABLE)
            return
        draft.passages = found.passages
        draft.degrade(found.degraded_reason)

    async def _make_prompt(self, draft: _Draft) -> None:
        try:
            draft.prompt = await self._assemble(draft)
        except PromptAssemblerUnavailable:
            draft.prompt = plain_prompt(draft.question, draft.passages)
            draft.degrade(PROMPT_ASSEMBLER_UNAVAILABLE)
        draft.degrade(draft.prompt.degraded_reason)
        by_id = {passage.passage_id: passage for passage in draft.passages}
        draft.passages = tuple(by_id[used] for used in draft.prompt.used_passage_ids if used in by_id)

    async def _assemble(self, draft: _Draft) -> Prompt:
        """With the task's own template, or with the one that every task may use."""
        for template in dict.fromkeys((draft.question.task, DEFAULT_TASK)):
            if self._missing_until_s.get(template, 0.0) > self._monotonic_s():
                continue
            timeout_s = min(self._limits.prompt_assembler_timeout_s, self._left_s(draft))
            try:
                return await self._assembler.assemble(template, draft.question, draft.passages, timeout_s=timeout_s)
            except TemplateNotFound:
                self._note_missing(template)
        raise PromptAssemblerUnavailable(f"the prompt assembler has no template {DEFAULT_TASK!r}")

    def _note_missing(self, template: str) -> None:
        if len(self._missing_until_s) >= _MAX_MISSING_TEMPLATES:
            self._missing_until_s.clear()
        self._missing_until_s[template] = self._monotonic_s() + _MISSING_TEMPLATE_S

    def _choose_adapter(self, draft: _Draft) -> None:
        pinned = draft.question.adapter
        if pinned:
            draft.adapter = "" if pinned == BASE_MODEL else pinned
            return
        live = self._adapters.live(draft.question.task)
        if live is None:
            draft.degrade(ALIASES_UNKNOWN)
        draft.adapter = live or ""

    async def _pieces(self, draft: _Draft) -> AsyncGenerator[Piece]:
        """Yield the llm's pieces, taken into the draft. Until the header is out, a second attempt is made where one can help."""
        may_retry = True
        while True:
            try:
                async with aclosing(self._attempt(draft)) as pieces:
                    async for piece in pieces:
                        yield piece
                return
            except (ServiceError, ModelFailed) as error:
                if draft.header is not None:
                    raise draft.cut(error) from error
                if isinstance(error, AdapterNotLoaded) and draft.adapter and not draft.question.adapter:
                    draft.adapter = ""
                    draft.degrade(ADAPTER_UNAVAILABLE)
                elif isinstance(error, ModelUnavailable) and may_retry:
                    may_retry = False
                    await self._model.wait_ready(min(self._limits.llm_reconnect_s, self._left_s(draft)))
                else:
                    raise

    async def _attempt(self, draft: _Draft) -> AsyncGenerator[Piece]:
        order = Order(request_id=draft.request_id, messages=draft.prompt.messages, sampling=draft.question.sampling, adapter=draft.adapter)
        async with aclosing(self._model.generate(order, timeout_s=self._left_s(draft))) as pieces:
            async for piece in pieces:
                draft.take(piece)
                yield piece
        if not draft.finish_reason:
            raise ModelUnavailable("the llm's stream ended without a finish reason")

    def _record(self, draft: _Draft) -> None:
        """An answer of which the caller saw nothing is none."""
        if draft.header is None:
            return
        generation = Generation(
            question=draft.question,
            header=draft.header,
            messages=draft.prompt.messages,
            answer="".join(draft.texts),
            finish_reason=draft.finish_reason,
            usage=draft.usage or Usage(completion_tokens=len(draft.texts)),
            started_at_ms=draft.started_at_ms,
            first_token_at_ms=draft.first_token_at_ms,
            finished_at_ms=self._wall_ms(),
        )
        self._log.append(generation)


def plain_prompt(question: Question, passages: Sequence[Passage]) -> Prompt:
    """Return a prompt without a template: passages from the best on, then turns from the newest back, as long as there is room.

    Control tokens of chat templates ("<|im_end|>") become blanks in every text: without the assembler nobody else does it.
    """
    room = _PLAIN_PROMPT_CHARS - len(question.text)
    blocks: list[str] = []
    used: list[str] = []
    for passage in passages:
        block = _plain(f"{passage.title}\n{passage.text}").strip()
        if len(block) > room:
            break
        room -= len(block)
        blocks.append(block)
        used.append(passage.passage_id)
    turns: list[Message] = []
    for turn in reversed(question.history):
        if len(turn.content) > room:
            break
        room -= len(turn.content)
        turns.insert(0, Message(role=turn.role, content=_plain(turn.content)))
    asked = "\n\n".join([*blocks, _plain(question.text)])
    messages = (Message(role="system", content=_PLAIN_SYSTEM), *turns, Message(role="user", content=asked))
    return Prompt(messages=messages, used_passage_ids=tuple(used))


def _plain(text: str) -> str:
    return _CONTROL_TOKEN.sub(" ", text)  # a blank, lest what is left and right of it makes another
