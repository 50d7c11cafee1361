"""What the curator reads and what it emits, as plain values. Knows neither Protobuf nor Kafka's client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from streams.partitioned.records import DeadLetter, Feedback


class Message(NamedTuple):
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One answer of the language model. `context_given`: its passages came with the request, not from the retriever."""

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
    context_given: bool = False
    traceparent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One example to learn from: what the model was given, and what it should have said or what its answer was worth."""

    example_id: str
    is_demonstration: bool
    generation: Generation
    feedback: Feedback
    answer: str


Emission = Example | DeadLetter


@dataclass(frozen=True, slots=True)
class Cut:
    """Offsets below which nothing is needed again, per topic."""

    generations_committable: int
    feedback_committable: int
