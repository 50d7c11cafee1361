"""What Generate is asked, and what is a valid question. Pure. Knows neither gRPC nor how an answer is made."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

from services.common.events.limits import MAX_ID_BYTES, check_id, check_text, check_written
from services.common.platform.errors import InvalidInput

DEFAULT_TASK = "answer"
BASE_MODEL = "base"
"""The adapter name that stands for none: `services.common.language.aliases.BASE_MODEL`, which a core cannot import."""
MAX_QUESTION_BYTES = 8_192
MAX_TURNS = 32
MAX_PASSAGES = 32
MAX_STOP_TEXTS = 8
_MAX_TITLE_BYTES = 1_024
_MAX_STOP_BYTES = 128
# All the text of one request beside its question: a prompt of a few thousand tokens has room for a fraction of it.
_MAX_TEXT_BYTES = 256 * 1024
_MAX_TEMPERATURE = 2.0
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_ROLES = ("user", "assistant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a chat; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A piece of a document. `score` is comparable within one search only."""

    passage_id: str
    title: str
    text: str
    score: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the model draws its next token. Zeros mean: greedy, no cut, the llm's default, not seeded."""

    temperature: float = 0.0
    top_p: float = 0.0
    max_tokens: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One Generate request. An empty `task` means "answer"; an `adapter` pins one, and "base" pins none."""

    user_id: str
    text: str
    task: str = ""
    history: tuple[Message, ...] = ()
    context: tuple[Passage, ...] = ()
    retrieve: bool = False
    retrieval_source: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    adapter: str = ""


def checked(question: Question, *, max_tokens: int) -> Question:
    """Return the question with its task filled in, and with an id for every passage that the caller gave.

    Args:
        question: as it came.
        max_tokens: most that `sampling.max_tokens` may ask for.
    Raises:
        InvalidInput: names the field.
    """
    check_id("user_id", question.user_id, InvalidInput)
    check_written("question", question.text, MAX_QUESTION_BYTES, InvalidInput)
    _check_name("task", question.task)
    _check_name("retrieval_source", question.retrieval_source)
    check_text("adapter", question.adapter, MAX_ID_BYTES, InvalidInput, min_bytes=0)
    _check_history(question.history)
    _check_context(question.context)
    _check_text_bytes(question)
    _check_sampling(question.sampling, max_tokens)
    return replace(question, task=question.task or DEFAULT_TASK, context=_with_ids(question.context))


def _check_name(field_name: str, value: str) -> None:
    if value and not _NAME.fullmatch(value):
        raise InvalidInput(f"{field_name}: it must be empty or have 1 to 64 of a-z, 0-9, _ and -, starting with a letter or digit")


def _check_history(history: tuple[Message, ...]) -> None:
    if len(history) > MAX_TURNS:
        raise InvalidInput(f"history: {len(history)} turns are more than {MAX_TURNS}")
    for index, turn in enumerate(history):
        if turn.role not in _ROLES:
            raise InvalidInput(
                f"history[{index}].role: {turn.role[:40]!r} is neither user nor assistant; the template writes the system's part"
            )


def _check_context(context: tuple[Passage, ...]) -> None:
    if len(context) > MAX_PASSAGES:
        raise InvalidInput(f"context: {len(context)} passages are more than {MAX_PASSAGES}")
    for index, passage in enumerate(context):
        check_text(f"context[{index}].passage_id", passage.passage_id, MAX_ID_BYTES, InvalidInput, min_bytes=0)
        check_text(f"context[{index}].title", passage.title, _MAX_TITLE_BYTES, InvalidInput, min_bytes=0)


def _check_text_bytes(question: Question) -> None:
    for name, texts in (("history", [turn.content for turn in question.history]), ("context", [each.text for each in question.context])):
        size = sum(len(text.encode()) for text in texts)
        if size > _MAX_TEXT_BYTES:
            raise InvalidInput(f"{name}: {size} bytes of text are more than {_MAX_TEXT_BYTES}")


def _check_sampling(sampling: Sampling, max_tokens: int) -> None:
    if not (math.isfinite(sampling.temperature) and 0 <= sampling.temperature <= _MAX_TEMPERATURE):
        raise InvalidInput(f"sampling.temperature: {sampling.temperature} is not within 0 and {_MAX_TEMPERATURE:g}")
    if not (math.isfinite(sampling.top_p) and 0 <= sampling.top_p <= 1):
        raise InvalidInput(f"sampling.top_p: {sampling.top_p} is not within 0 and 1")
    if sampling.max_tokens > max_tokens:
        raise InvalidInput(f"sampling.max_tokens: {sampling.max_tokens} is more than {max_tokens}")
    if len(sampling.stop) > MAX_STOP_TEXTS:
        raise InvalidInput(f"sampling.stop: {len(sampling.stop)} texts are more than {MAX_STOP_TEXTS}")
    for index, text in enumerate(sampling.stop):
        check_text(f"sampling.stop[{index}]", text, _MAX_STOP_BYTES, InvalidInput)


def _with_ids(context: tuple[Passage, ...]) -> tuple[Passage, ...]:
    """The assembler says by id which passages it used, so each needs one of its own."""
    taken: set[str] = set()
    named = []
    for number, passage in enumerate(context, start=1):
        passage_id = passage.passage_id
        if not passage_id or passage_id in taken:
            passage_id = f"context:{number}"
        taken.add(passage_id)
        named.append(replace(passage, passage_id=passage_id))
    return tuple(named)
