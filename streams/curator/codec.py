"""Between the wire and the curator's values: parses and checks what is read, builds what is written. No I/O, no clock."""

from __future__ import annotations

import math

from tunemesh.common.v1 import chat_pb2
from tunemesh.events.v1 import dead_letter_pb2, example_pb2, feedback_pb2, generation_pb2

from services.common.events.dead_letters import dead_letter
from services.common.events.envelope import MalformedRecord, parse_value
from services.common.events.feedback_kinds import BOOLEAN, SCORE, fault_of, is_about_answer
from services.common.platform import telemetry
from streams.curator.model import DeadLetter, Example, Feedback, Generation, Message, Record

_MAX_ID_BYTES = 128
# A sender's clock may run ahead by so much; a record from later than that would wait for its time.
_MAX_AHEAD_MS = 300_000


def read_generation(record: Record, now_ms: int) -> Generation:
    """Return the answer in a record of generations.v1.

    Raises:
        MalformedRecord: it cannot be parsed, or a field breaks the contract.
    """
    message = parse_value(record.value, record.headers, generation_pb2.Generation)
    for name in ("request_id", "user_id", "task"):
        _check_id(name, getattr(message, name))
    _check_time("finished_at_ms", message.finished_at_ms, now_ms)
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
        _check_answer_feedback(message, now_ms)
    return Feedback(
        feedback_id=message.feedback_id,
        request_id=message.request_id,
        user_id=message.user_id,
        item_id=message.item_id,
        kind=message.kind,
        value=message.value,
        text=message.text,
        accepted_at_ms=min(message.accepted_at_ms, now_ms + _MAX_AHEAD_MS),
        traceparent=telemetry.traceparent_of(record.headers),
    )


def _check_answer_feedback(message: feedback_pb2.Feedback, now_ms: int) -> None:
    for name in ("feedback_id", "request_id", "user_id"):
        _check_id(name, getattr(message, name))
    _check_time("accepted_at_ms", message.accepted_at_ms, now_ms)
    if not math.isfinite(message.value):
        raise MalformedRecord(f"value is {message.value}, not a finite number")
    fault = fault_of(message.kind, message.value, message.text)
    if fault is not None:
        raise MalformedRecord(f"{fault[0]}: {fault[1]}")


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


def write_dead_letter(letter: DeadLetter, now_ms: int) -> dead_letter_pb2.DeadLetter:
    """Return the DeadLetter of a record; without its value where that holds personal data."""
    record = letter.record
    return dead_letter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        reason=letter.reason,
        detail=letter.detail,
        key=record.key,
        value=None if letter.without_content else record.value,
        headers=record.headers,
        failed_at_ms=now_ms,
        feedback_id=letter.feedback_id,
    )


def _check_id(name: str, value: str) -> None:
    if not value or len(value.encode()) > _MAX_ID_BYTES:
        raise MalformedRecord(f"{name} has {len(value.encode())} bytes; it must have 1 to {_MAX_ID_BYTES}")


def _check_time(name: str, value_ms: int, now_ms: int) -> None:
    if value_ms <= 0:
        raise MalformedRecord(f"{name} is {value_ms}, not a time in Unix milliseconds")
    if value_ms > now_ms + _MAX_AHEAD_MS:
        raise MalformedRecord(f"{name} is {value_ms - now_ms} ms in the future: check the sender's clock")
