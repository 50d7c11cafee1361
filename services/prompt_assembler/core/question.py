"""What is asked, with what may be used for the answer, and whether a prompt can be made of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.platform.errors import InvalidInput
from services.prompt_assembler.core.template import MAX_PROMPT_TOKENS, Turn

MAX_QUESTION_BYTES = 32 * 1024
MAX_PASSAGES = 50
MAX_PASSAGE_BYTES = 64 * 1024
MAX_HISTORY = 200
MAX_TURN_BYTES = 32 * 1024

_TURN_ROLES = ("user", "assistant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A piece of a document, as retrieved or as the caller gave it (then without an id)."""

    passage_id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, what may be used for the answer (best first), and what was said before (oldest first)."""

    text: str
    passages: tuple[Passage, ...] = ()
    history: tuple[Turn, ...] = ()
    max_prompt_tokens: int = 0
    """0: the template's own."""


def check_question(question: Question) -> None:
    """Raise InvalidInput, naming the field, unless a prompt can be made of it."""
    if not question.text.strip():
        raise InvalidInput("question: it is empty")
    _check_bytes("question", question.text, MAX_QUESTION_BYTES)
    if len(question.passages) > MAX_PASSAGES:
        raise InvalidInput(f"passages: {len(question.passages)} passages; at most {MAX_PASSAGES} are taken")
    for index, passage in enumerate(question.passages):
        _check_bytes(f"passages[{index}]", passage.title + passage.text, MAX_PASSAGE_BYTES)
    if len(question.history) > MAX_HISTORY:
        raise InvalidInput(f"history: {len(question.history)} turns; at most {MAX_HISTORY} are taken")
    for index, turn in enumerate(question.history):
        if turn.role not in _TURN_ROLES:
            raise InvalidInput(f"history[{index}].role: {turn.role[:80]!r} is neither 'user' nor 'assistant'")
        _check_bytes(f"history[{index}].content", turn.content, MAX_TURN_BYTES)
    if question.max_prompt_tokens > MAX_PROMPT_TOKENS:
        raise InvalidInput(f"max_prompt_tokens: {question.max_prompt_tokens} is over {MAX_PROMPT_TOKENS}")


def _check_bytes(field: str, text: str, limit: int) -> None:
    size = len(text.encode())
    if size > limit:
        raise InvalidInput(f"{field}: it has {size} bytes; at most {limit} are taken")
