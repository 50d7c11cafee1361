"""How an answer of the language model is made: passages, then a prompt, then the model's stream; and what each loss costs.

    retriever          lost: no passages                                   retrieval_unavailable
    prompt assembler   lost: the short prompt built in here, its tokens    prompt_assembler_unavailable
                       counted by the llm, or bounded by bytes
    control.v1         not read yet: the base model                        aliases_unknown
    live adapter       not loaded: the base model                          adapter_unavailable
    llm                lost: one more attempt before the first text, then Unavailable; after it, AnswerCut
    deadline           over: OutOfTime, before the first text and after it

Free of I/O, clock and randomness: they are passed in. Knows neither gRPC nor Kafka.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from services.common.language.token_bound import most_tokens
from services.common.platform.errors import ServiceError
from services.router.draft import Draft
from services.router.generation import (
    AdapterNotLoaded,
    Adapters,
    GenerationLog,
    Header,
    LanguageModel,
    ModelFailed,
    ModelUnavailable,
    Order,
    OutOfTime,
    Piece,
    Prompt,
    PromptAssembler,
    PromptAssemblerUnavailable,
    Retriever,
    RetrieverUnavailable,
    TemplateNotFound,
)
from services.router.plain_prompt import plain_prompt, texts_of
from services.router.question import BASE_MODEL, DEFAULT_TASK, Question, checked

RETRIEVAL_UNAVAILABLE = "retrieval_unavailable"
PROMPT_ASSEMBLER_UNAVAILABLE = "prompt_assembler_unavailable"
ADAPTER_UNAVAILABLE = "adapter_unavailable"
ALIASES_UNKNOWN = "aliases_unknown"
PINNED_VARIANT = "pinned"
CANCELLED, ERROR = "cancelled", "error"

# Less than this is not worth an attempt.
_MIN_ATTEMPT_S = 0.005
# A bound is at hand: nobody waits longer for an exact count.
_COUNT_TOKENS_S = 0.5
# A task without a template of its own is not asked for again for so long.
_MISSING_TEMPLATE_S = 5.0
_MAX_MISSING_TEMPLATES = 1_000


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
            OutOfTime: the deadline is over.
            Unavailable: no llm.
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
            answer = draft.finished(self._wall_ms())
            if answer is not None:
                self._log.append(answer)

    def _begin(self, question: Question, remaining_s: float | None) -> Draft:
        question = checked(question, max_tokens=self._limits.max_tokens)
        budget_s = self._limits.default_deadline_s if remaining_s is None else min(remaining_s, self._limits.max_deadline_s)
        now_ms = self._wall_ms()
        return Draft(
            question=question,
            request_id=self._new_request_id(now_ms),
            variant=PINNED_VARIANT if question.adapter else self._variant,
            deadline_s=self._monotonic_s() + budget_s,
            started_at_ms=now_ms,
        )

    def _left_s(self, draft: Draft) -> float:
        left_s = draft.deadline_s - self._monotonic_s()
        if left_s < _MIN_ATTEMPT_S:
            raise OutOfTime("no time is left before the deadline; retry with a longer one")
        return left_s

    async def _find_passages(self, draft: Draft) -> None:
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

    async def _make_prompt(self, draft: Draft) -> None:
        try:
            draft.prompt = await self._assemble(draft)
        except PromptAssemblerUnavailable:
            draft.prompt = await self._plain_prompt(draft)
            draft.degrade(PROMPT_ASSEMBLER_UNAVAILABLE)
        draft.degrade(draft.prompt.degraded_reason)
        by_id = {passage.passage_id: passage for passage in draft.passages}
        draft.passages = tuple(by_id[used] for used in draft.prompt.used_passage_ids if used in by_id)

    async def _plain_prompt(self, draft: Draft) -> Prompt:
        texts = texts_of(draft.question, draft.passages)
        try:
            counts = await self._model.count_tokens(texts, timeout_s=min(_COUNT_TOKENS_S, self._left_s(draft)))
        except ModelUnavailable:
            counts = [most_tokens(text) for text in texts]
        tokens = dict(zip(texts, counts, strict=True))
        return plain_prompt(draft.question, draft.passages, lambda text: tokens[text] if text in tokens else most_tokens(text))

    async def _assemble(self, draft: Draft) -> Prompt:
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

    def _choose_adapter(self, draft: Draft) -> None:
        pinned = draft.question.adapter
        if pinned:
            draft.adapter = "" if pinned == BASE_MODEL else pinned
            return
        live = self._adapters.live(draft.question.task)
        if live is None:
            draft.degrade(ALIASES_UNKNOWN)
        draft.adapter = live or ""

    async def _pieces(self, draft: Draft) -> AsyncGenerator[Piece]:
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

    async def _attempt(self, draft: Draft) -> AsyncGenerator[Piece]:
        order = Order(request_id=draft.request_id, messages=draft.prompt.messages, sampling=draft.question.sampling, adapter=draft.adapter)
        async with aclosing(self._model.generate(order, timeout_s=self._left_s(draft))) as pieces:
            async for piece in pieces:
                draft.take(piece)
                yield piece
        if not draft.finish_reason:
            raise ModelUnavailable("the llm's stream ended without a finish reason")
