"""Chats with the language model: turns, passages and sampling, and what a request may hold of them. Pure, so cores may use it.

`services.common.events.wire.chat` reads and writes them. How long a prompt may be is the business of those who make and take prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.common.events.limits import MAX_ID_BYTES, ErrorOf, check_text, check_written

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = (SYSTEM, USER, ASSISTANT)
HISTORY_ROLES = (USER, ASSISTANT)
"""Of earlier turns: the system's part is written by the template."""

MAX_QUESTION_BYTES = 8_192
MAX_CONTEXT_PASSAGES = 32
"""Passages that a request brings along."""
MAX_CONTEXT_BYTES = 256 * 1024
"""Of their texts together, as of the texts of the earlier turns: a prompt of a few thousand tokens has room for a fraction of it."""
MAX_PASSAGE_BYTES = 64 * 1024
"""Of one passage, its title and its text together."""
MAX_TURN_BYTES = 32 * 1024
"""Of one earlier turn."""
MAX_TITLE_BYTES = 1_024
MAX_PASSAGES = 50
"""Passages that one search returns, and one prompt takes."""
MAX_STOP_TEXTS = 8
MAX_STOP_BYTES = 128
MAX_TEMPERATURE = 2.0


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; `role` is one of ROLES."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document. Without an id when the caller gave it; `score` is comparable within one search only."""

    title: str
    text: str
    passage_id: str = ""
    score: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the model draws its next token. Zeros mean: greedy, no cut, the llm's default number of tokens, not seeded."""

    temperature: float = 0.0
    top_p: float = 0.0
    max_tokens: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    reproducible: bool = False
    """The prompt is computed anew, so that the same prompt gets the same answer each time when nothing else runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one answer cost, in tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


def check_question(field: str, text: str, error: ErrorOf) -> None:
    """Raise `error` unless the question has 1 to MAX_QUESTION_BYTES bytes and is not only blanks."""
    check_written(field, text, MAX_QUESTION_BYTES, error)


def check_roles(field: str, messages: Sequence[Message], roles: Sequence[str], error: ErrorOf) -> None:
    """Raise `error`, naming the turn, unless every turn has one of the roles."""
    for index, message in enumerate(messages):
        if message.role not in roles:
            raise error(f"{field}[{index}].role: {message.role[:40]!r} is none of {', '.join(roles)}")


def check_context(field: str, passages: Sequence[Passage], error: ErrorOf) -> None:
    """Raise `error`, naming the passage, unless a request may bring the passages along: their number, ids, titles and texts."""
    if len(passages) > MAX_CONTEXT_PASSAGES:
        raise error(f"{field}: {len(passages)} passages are more than {MAX_CONTEXT_PASSAGES}")
    for index, passage in enumerate(passages):
        check_text(f"{field}[{index}].passage_id", passage.passage_id, MAX_ID_BYTES, error, min_bytes=0)
        check_text(f"{field}[{index}].title", passage.title, MAX_TITLE_BYTES, error, min_bytes=0)
        check_text(f"{field}[{index}].text", passage.text, MAX_PASSAGE_BYTES - MAX_TITLE_BYTES, error, min_bytes=0)
    check_texts(field, [passage.text for passage in passages], error)


def check_turns(field: str, turns: Sequence[Message], error: ErrorOf) -> None:
    """Raise `error`, naming the turn, unless each has one of the roles of earlier turns and at most MAX_TURN_BYTES bytes."""
    check_roles(field, turns, HISTORY_ROLES, error)
    for index, turn in enumerate(turns):
        check_text(f"{field}[{index}].content", turn.content, MAX_TURN_BYTES, error, min_bytes=0)


def check_texts(field: str, texts: Sequence[str], error: ErrorOf) -> None:
    """Raise `error` unless the texts have at most MAX_CONTEXT_BYTES bytes together."""
    size = sum(len(text.encode()) for text in texts)
    if size > MAX_CONTEXT_BYTES:
        raise error(f"{field}: {size} bytes of text are more than {MAX_CONTEXT_BYTES}")


def check_sampling(sampling: Sampling, max_tokens: int, error: ErrorOf) -> None:
    """Raise `error`, naming the field, unless every number is in its range; `max_tokens` bounds the tokens that may be asked for."""
    if not (math.isfinite(sampling.temperature) and 0 <= sampling.temperature <= MAX_TEMPERATURE):
        raise error(f"sampling.temperature: {sampling.temperature} is not within 0 and {MAX_TEMPERATURE:g}")
    if not (math.isfinite(sampling.top_p) and 0 <= sampling.top_p <= 1):
        raise error(f"sampling.top_p: {sampling.top_p} is not within 0 and 1")
    if sampling.max_tokens > max_tokens:
        raise error(f"sampling.max_tokens: {sampling.max_tokens} is more than {max_tokens}")
    if len(sampling.stop) > MAX_STOP_TEXTS:
        raise error(f"sampling.stop: {len(sampling.stop)} texts are more than {MAX_STOP_TEXTS}")
    for index, text in enumerate(sampling.stop):
        check_text(f"sampling.stop[{index}]", text, MAX_STOP_BYTES, error)
