"""What the curator reads and what it emits, as plain values. Knows neither Protobuf nor Kafka's client."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.events.feedback import Feedback
from services.common.events.generation import Generation
from streams.partitioned.records import DeadLetter


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
