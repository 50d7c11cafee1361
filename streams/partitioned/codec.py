"""Between the wire and the values that the streams of this room share: checks what is read, builds dead letters. No I/O, no clock."""

from __future__ import annotations

import math

from tunemesh.events.v1 import feedback_pb2

from services.common.events.dead_letters import dead_letter, dead_letter_headers
from services.common.events.envelope import MalformedRecord
from services.common.events.feedback_kinds import is_about_answer
from services.common.platform import telemetry
from streams.partitioned.records import DeadLetter, Feedback, Outgoing, Record

_MAX_ID_BYTES = 128
# A sender's clock may run ahead by so much; a record from later than that would hold everything that waits for its time.
_MAX_AHEAD_MS = 300_000


def check_id(name: str, value: str) -> None:
    """Check an id.

    Raises:
        MalformedRecord: it is empty or too long.
    """
    if not value:
        raise MalformedRecord(f"{name} is empty")
    if len(value) > _MAX_ID_BYTES or len(value.encode()) > _MAX_ID_BYTES:
        raise MalformedRecord(f"{name} is longer than {_MAX_ID_BYTES} bytes")


def check_time(name: str, value_ms: int, now_ms: int) -> None:
    """Check the time of an event against the wall clock.

    Raises:
        MalformedRecord: it is no time, or too far in the future.
    """
    if value_ms <= 0:
        raise MalformedRecord(f"{name} is {value_ms}, not a time in Unix milliseconds")
    if value_ms > now_ms + _MAX_AHEAD_MS:
        raise MalformedRecord(f"{name} is {value_ms - now_ms} ms in the future: check the sender's clock")


def check_feedback(message: feedback_pb2.Feedback, now_ms: int) -> None:
    """Check what all feedback has, about items or answers.

    Raises:
        MalformedRecord: a field breaks the contract.
    """
    for name in ("feedback_id", "request_id", "user_id"):
        check_id(name, getattr(message, name))
    check_time("accepted_at_ms", message.accepted_at_ms, now_ms)
    if not math.isfinite(message.value):
        raise MalformedRecord(f"value is {message.value}, not a finite number")


def feedback_of(message: feedback_pb2.Feedback, record: Record, now_ms: int) -> Feedback:
    """Return the feedback in a message; its time is at most as far ahead of the wall clock as `check_time` allows."""
    return Feedback(
        feedback_id=message.feedback_id,
        request_id=message.request_id,
        user_id=message.user_id,
        item_id=message.item_id,
        kind=message.kind,
        value=message.value,
        accepted_at_ms=min(message.accepted_at_ms, now_ms + _MAX_AHEAD_MS),
        text=message.text if is_about_answer(message.kind, message.item_id) else "",
        traceparent=telemetry.traceparent_of(record.headers),
    )


def write_dead_letter(letter: DeadLetter, *, topic: str, source: str, now_ms: int) -> Outgoing:
    """Return the record for the dead-letter topic.

    Args:
        letter: what is set aside.
        topic: the dead-letter topic.
        source: of the stream, for the headers.
        now_ms: wall clock, Unix milliseconds.
    """
    record = letter.record
    message = dead_letter(
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
    return Outgoing(topic, record.key, message.SerializeToString(), dead_letter_headers(message, source))
