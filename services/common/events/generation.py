"""Generations: answers of the language model, whole or cut, as they are logged. Pure, so cores may use it; `wire.generation` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.common.events.chat import Message, Usage
from services.common.events.limits import ErrorOf, check_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One answer of the language model.

    Attributes:
        request_id: of the response.
        user_id: who asked.
        task: whose template and adapter answered.
        question: as it was asked.
        messages: what the model was given.
        answer: what it said.
        finish_reason: "stop", "length", "cancelled" or "error".
        experiment, variant, model_version, prompt_version: who answered, from which template.
        passage_ids: of the passages in the prompt.
        degraded_reason: what was missing; empty when nothing was.
        usage: in tokens.
        started_at_ms, first_token_at_ms, finished_at_ms: Unix milliseconds, wall clock of the router; 0: it did not come to that.
        context_given: the passages came with the request, not from the retriever: they may hold what a user wrote.
        traceparent: W3C trace context of its record; empty when there is none.
    """

    request_id: str
    user_id: str
    task: str
    question: str
    messages: tuple[Message, ...]
    answer: str
    finish_reason: str
    model_version: str
    prompt_version: str
    passage_ids: tuple[str, ...]
    finished_at_ms: int
    experiment: str = ""
    variant: str = ""
    degraded_reason: str = ""
    usage: Usage = field(default_factory=Usage)
    started_at_ms: int = 0
    first_token_at_ms: int = 0
    context_given: bool = False
    traceparent: str = ""


def check(generation: Generation, error: ErrorOf) -> None:
    """Raise `error`, naming the field, unless the ids are ids and there is a prompt."""
    check_id("request_id", generation.request_id, error)
    check_id("user_id", generation.user_id, error)
    check_id("task", generation.task, error)
    if not generation.messages:
        raise error("messages: there are none")
