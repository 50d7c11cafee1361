"""Between the wire and the curator's values: parses and checks what is read, builds what is written. No I/O, no clock."""

from __future__ import annotations

from tunemesh.events.v1 import example_pb2

from services.common.events.envelope import MalformedRecord
from services.common.events.feedback import Feedback, check_answer
from services.common.events.feedback_kinds import opinion_of
from services.common.events.generation import Generation
from services.common.events.wire import feedback as wire_feedback
from services.common.events.wire import generation as wire_generation
from services.common.events.wire.chat import chat_messages
from streams.curator.model import Example
from streams.partitioned.records import Record


def read_generation(record: Record, now_ms: int) -> Generation:
    """Return the answer in a record of generations.v1.

    Raises:
        MalformedRecord: it cannot be parsed, or a field breaks the contract.
    """
    return wire_generation.read_generation(record.value, record.headers, now_ms)


def read_feedback(record: Record, now_ms: int) -> Feedback | None:
    """Return the feedback in a record of feedback.v1; None when it is malformed without being about an answer: the joiner sets it aside.

    Raises:
        MalformedRecord: it is about an answer, and a field breaks the contract.
    """
    try:
        feedback = wire_feedback.parse_feedback(record.value, record.headers)
    except MalformedRecord:
        return None
    try:
        wire_feedback.check_feedback(feedback, now_ms)
    except MalformedRecord:
        if feedback.is_about_answer:
            raise
        return None
    if feedback.is_about_answer:
        check_answer(feedback, MalformedRecord)
    return feedback


def write_example(example: Example) -> bytes:
    """Return the LlmExample of an example."""
    generation, feedback = example.generation, example.feedback
    kind = example_pb2.EXAMPLE_KIND_DEMONSTRATION if example.is_demonstration else example_pb2.EXAMPLE_KIND_JUDGED
    return example_pb2.LlmExample(
        example_id=example.example_id,
        task=generation.task,
        kind=kind,
        question=generation.question,
        messages=chat_messages(generation.messages),
        answer=example.answer,
        score=opinion_of(feedback.kind, feedback.value) or 0.0,
        comment="" if example.is_demonstration else feedback.text,
        request_id=generation.request_id,
        feedback_id=feedback.feedback_id,
        prompt_version=generation.prompt_version,
        model_version=generation.model_version,
        passage_ids=generation.passage_ids,
        created_at_ms=feedback.accepted_at_ms,
        user_id=feedback.user_id,
    ).SerializeToString()
