"""What Generate is asked, and what is a valid question. Pure. Knows neither gRPC nor how an answer is made."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from services.common.events.chat import (
    Message,
    Passage,
    Sampling,
    check_context,
    check_question,
    check_sampling,
    check_texts,
    check_turns,
)
from services.common.events.limits import MAX_ID_BYTES, check_id, check_name, check_text
from services.common.platform.errors import InvalidInput
from services.common.platform.ids import canonical_id

DEFAULT_TASK = "answer"
BASE_MODEL = "base"
"""The adapter name that stands for none: `services.common.language.aliases.BASE_MODEL`, which a core cannot import."""
MAX_TURNS = 32


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
    """Return the question with its user's id in canonical form, its task filled in, and with an id for every passage that the caller gave.

    Args:
        question: as it came.
        max_tokens: most that `sampling.max_tokens` may ask for.
    Raises:
        InvalidInput: names the field.
    """
    user_id = canonical_id(question.user_id)
    check_id("user_id", user_id, InvalidInput)
    check_question("question", question.text, InvalidInput)
    for name, value in (("task", question.task), ("retrieval_source", question.retrieval_source)):
        if value:
            check_name(name, value, InvalidInput)
    check_text("adapter", question.adapter, MAX_ID_BYTES, InvalidInput, min_bytes=0)
    _check_history(question.history)
    check_context("context", question.context, InvalidInput)
    check_sampling(question.sampling, max_tokens, InvalidInput)
    return replace(question, user_id=user_id, task=question.task or DEFAULT_TASK, context=_with_ids(question.context))


def _check_history(history: tuple[Message, ...]) -> None:
    if len(history) > MAX_TURNS:
        raise InvalidInput(f"history: {len(history)} turns are more than {MAX_TURNS}")
    check_turns("history", history, InvalidInput)
    check_texts("history", [turn.content for turn in history], InvalidInput)


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
