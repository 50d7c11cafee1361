"""What the curator reads and what it emits, as plain values. Knows neither Protobuf nor Kafka's client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Record(NamedTuple):
    """One Kafka record as it was read; kept whole for dead letters."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


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
class Feedback:
    """What a user did. Feedback about an item (`item_id` is set) is not the curator's."""

    feedback_id: str
    request_id: str
    user_id: str
    item_id: str
    kind: str
    value: float
    text: str
    accepted_at_ms: int
    traceparent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One example to learn from: what the model was given, and what it should have said or what its answer was worth."""

    example_id: str
    is_demonstration: bool
    generation: Generation
    feedback: Feedback
    answer: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that cannot be used, with its reason. Of `without_content` neither value nor key's text may be repeated anywhere."""

    record: Record
    reason: str
    detail: str
    feedback_id: str = ""
    without_content: bool = False


Emission = Example | DeadLetter


@dataclass(frozen=True, slots=True)
class Cut:
    """Offsets below which nothing is needed again, per topic."""

    generations_committable: int
    feedback_committable: int
