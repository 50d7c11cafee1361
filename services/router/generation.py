"""An answer of the language model: its parts and errors, and the services that `generator` makes it with, as Protocols. Pure."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.common.events.chat import Message, Passage, Sampling, Usage
from services.common.platform.errors import DeadlineExceeded, NotFound, Unavailable
from services.router.question import Question


class RetrieverUnavailable(Unavailable):
    """The retriever did not answer in its time. The answer goes on without passages."""


class PromptAssemblerUnavailable(Unavailable):
    """The prompt assembler did not answer in its time. The answer goes on with the built-in prompt."""


class TemplateNotFound(NotFound):
    """The prompt assembler has no such template."""


class ModelUnavailable(Unavailable):
    """The llm could not be reached, or broke off. Retrying helps once it is back."""


class OutOfTime(DeadlineExceeded):
    """The request's deadline passed before the answer was whole. Retry with a longer one."""


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
class Piece:
    """New text of the answer. The llm's first piece names the model version, its last one has `finish_reason` and `usage`."""

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
            ModelUnavailable, OutOfTime, AdapterNotLoaded, InvalidInput, Overloaded, ModelFailed.
        """
        ...

    async def count_tokens(self, texts: Sequence[str], *, timeout_s: float) -> Sequence[int]:
        """Return the tokens of each of at most 256 texts, as the served model counts them.

        Raises:
            ModelUnavailable: not within `timeout_s`, or the model does not count them.
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
