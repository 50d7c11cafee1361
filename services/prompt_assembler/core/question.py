"""What is asked, with what may be used for the answer, and whether a prompt can be made of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.events.chat import MAX_PASSAGE_BYTES, MAX_PASSAGES, Message, Passage, check_turns
from services.common.events.limits import check_text, check_written
from services.common.platform.errors import InvalidInput
from services.prompt_assembler.core.template import MAX_PROMPT_TOKENS

MAX_QUESTION_BYTES = 32 * 1024
MAX_HISTORY = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, what may be used for the answer (best first), and what was said before (oldest first)."""

    text: str
    passages: tuple[Passage, ...] = ()
    history: tuple[Message, ...] = ()
    max_prompt_tokens: int = 0
    """0: the template's own."""


def check_question(question: Question) -> None:
    """Raise InvalidInput, naming the field, unless a prompt can be made of it."""
    check_written("question", question.text, MAX_QUESTION_BYTES, InvalidInput)
    if len(question.passages) > MAX_PASSAGES:
        raise InvalidInput(f"passages: {len(question.passages)} passages; at most {MAX_PASSAGES} are taken")
    for index, passage in enumerate(question.passages):
        check_text(f"passages[{index}]", passage.title + passage.text, MAX_PASSAGE_BYTES, InvalidInput, min_bytes=0)
    if len(question.history) > MAX_HISTORY:
        raise InvalidInput(f"history: {len(question.history)} turns; at most {MAX_HISTORY} are taken")
    check_turns("history", question.history, InvalidInput)
    if question.max_prompt_tokens > MAX_PROMPT_TOKENS:
        raise InvalidInput(f"max_prompt_tokens: {question.max_prompt_tokens} is over {MAX_PROMPT_TOKENS}")
