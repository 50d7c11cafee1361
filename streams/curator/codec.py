"""Between the wire and the curator's values: parses and checks what is read, builds what is written. No I/O, no clock."""

from __future__ import annotations

from tunemesh.common.v1 import chat_pb2
from tunemesh.events.v1 import example_pb2, feedback_pb2, generation_pb2

from services.common.events.envelope import MalformedRecord, parse_value
from services.common.events.feedback_kinds import BOOLEAN, SCORE, fault_of, is_about_answer
from services.common.platform import telemetry
from streams.curator.model import Example, Generation, Message
from streams.partitioned.codec import check_feedback, check_id, check_time, feedback_of
from streams.partitioned.records import Feedback, Record


def read_generation(record: Record, now_ms: int) -> Generation:
    """Return the answer in a record of generations.v1.

    Raises:
        MalformedRecord: it cannot be parsed, or a field breaks the contract.
    """
    message = parse_value(record.value, record.headers, generation_pb2.Generation)
    for name in ("request_id", "user_id", "task"):
        check_id(name, getattr(message, name))
    check_time("finished_at_ms", message.finished_at_ms, now_ms)
    if not message.messages:
        raise MalformedRecord("messages is empty")
    return Generation(
        request_id=message.request_id,
        user_id=message.user_id,
        task=message.task,
        question=message.question,
        messages=tuple(Message(turn.role, turn.content) for turn in message.messages),
        answer=message.answer,
        finish_reason=message.finish_reason,
        model_version=message.model_version,
        prompt_version=message.prompt_version,
        passage_ids=tuple(message.passage_ids),
        finished_at_ms=message.finished_at_ms,
        context_given=message.context_given,
        traceparent=telemetry.traceparent_of(record.headers),
    )


def read_feedback(record: Record, now_ms: int) -> Feedback | None:
    """Return the feedback in a record of feedback.v1; None when it cannot be parsed, which is the joiner's to set aside.

    Raises:
        MalformedRecord: it is about an answer, and a field breaks the contract.
    """
    try:
        message = parse_value(record.value, record.headers, feedback_pb2.Feedback)
    except MalformedRecord:
        return None
    if is_about_answer(message.kind, message.item_id):
        check_feedback(message, now_ms)
        fault = fault_of(message.kind, message.value, message.text)
        if fault is not None:
            raise MalformedRecord(f"{fault[0]}: {fault[1]}")
    return feedback_of(message, record, now_ms)


def write_example(example: Example) -> bytes:
    """Return the LlmExample of an example."""
    generation, feedback = example.generation, example.feedback
    kind = example_pb2.EXAMPLE_KIND_DEMONSTRATION if example.is_demonstration else example_pb2.EXAMPLE_KIND_JUDGED
    return example_pb2.LlmExample(
        example_id=example.example_id,
        task=generation.task,
        kind=kind,
        question=generation.question,
        messages=[chat_pb2.ChatMessage(role=turn.role, content=turn.content) for turn in generation.messages],
        answer=example.answer,
        score=feedback.value if feedback.kind in (BOOLEAN, SCORE) else 0.0,
        comment="" if example.is_demonstration else feedback.text,
        request_id=generation.request_id,
        feedback_id=feedback.feedback_id,
        prompt_version=generation.prompt_version,
        model_version=generation.model_version,
        passage_ids=generation.passage_ids,
        created_at_ms=feedback.accepted_at_ms,
    ).SerializeToString()
