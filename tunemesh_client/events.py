"""Feedback as a record of feedback.v1: its checks, key, headers and value, as every reader in the mesh expects them. Pure.

The key is the user, so that all that a user does lies in one partition, in order. The value is Protobuf; the headers are CloudEvents 1.0
in binary mode (`ce_…`) and W3C trace context.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from tunemesh_client.errors import InvalidRequest
from tunemesh_client.ids import canonical_id
from tunemesh_client.messages import Feedback

TOPIC = "feedback.v1"
EVENT_TYPE = "tunemesh.events.v1.Feedback"

MAX_ID_BYTES = 128
MAX_KIND_BYTES = 64
MAX_TEXT_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class _AnswerKind:
    """What feedback about an answer has. The row of the same name in services/common/events/feedback_kinds.py says the same."""

    has_text: bool = False
    is_valid: Callable[[float], bool] = lambda _: True
    otherwise: str = ""


_ANSWER_KINDS = {
    "boolean": _AnswerKind(is_valid=lambda value: value in (0.0, 1.0), otherwise="neither 0 nor 1"),
    "score": _AnswerKind(is_valid=lambda value: 0.0 <= value <= 1.0, otherwise="not within 0 and 1"),
    "comment": _AnswerKind(has_text=True),
    "demonstration": _AnswerKind(has_text=True),
}


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record: of a feedback, or of a profile (`tunemesh_client.profiles`)."""

    event_id: str
    """Of feedback its feedback_id."""
    written_at_ms: int
    key: bytes
    value: bytes | None
    """None deletes what a compacted topic says of the key."""
    headers: list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Written:
    """Where the broker has put a feedback."""

    feedback_id: str
    accepted_at_ms: int
    """Unix milliseconds: the mesh has learned from it once its watermark has passed this."""
    partition: int
    offset: int


def check(feedback: Feedback) -> None:
    """Raise InvalidRequest, naming the field, for feedback that the mesh would set aside: the broker itself looks at nothing."""
    for field in ("feedback_id", "request_id"):
        _check_size(field, getattr(feedback, field), MAX_ID_BYTES)
    _check_size("user_id", canonical_id(feedback.user_id, "user_id"), MAX_ID_BYTES)
    _check_size("kind", feedback.kind, MAX_KIND_BYTES)
    if not math.isfinite(feedback.value):
        raise _invalid(f"value: {feedback.value} is not finite")
    if feedback.original_time_ms < 0:
        raise _invalid(f"original_time_ms: {feedback.original_time_ms} is negative; 0 means live data")
    if feedback.kind in _ANSWER_KINDS:
        _check_about_answer(feedback)
    else:
        _check_size("item_id", canonical_id(feedback.item_id, "item_id"), MAX_ID_BYTES)
        if feedback.text:
            raise _invalid("text: only a comment or a demonstration has one")


def _check_about_answer(feedback: Feedback) -> None:
    kind = _ANSWER_KINDS[feedback.kind]
    if feedback.item_id:
        raise _invalid(f"item_id: it must be empty; a {feedback.kind} is about an answer")
    if kind.has_text:
        _check_size("text", feedback.text, MAX_TEXT_BYTES)
        if not feedback.text.strip():
            raise _invalid(f"text: a {feedback.kind} must not be blank")
    elif feedback.text:
        raise _invalid(f"text: a {feedback.kind} has none")
    if not kind.is_valid(feedback.value):
        raise _invalid(f"value: {feedback.value} is {kind.otherwise}")


def _check_size(field: str, value: str, max_bytes: int) -> None:
    size = len(value.encode())
    if not 1 <= size <= max_bytes:
        raise _invalid(f"{field}: it has {size} bytes; it must have 1 to {max_bytes}")


def _invalid(details: str) -> InvalidRequest:
    return InvalidRequest(details, "INVALID_ARGUMENT", "feedback")


def record_of(feedback: Feedback, *, source: str, accepted_at_ms: int, traceparent: str) -> Record:
    """Return the record of a feedback.

    Args:
        feedback: checked.
        source: `ce_source`: who writes, e.g. "/shop/web".
        accepted_at_ms: Unix milliseconds, now.
        traceparent: W3C trace context; no header when empty.
    """
    headers = headers_of(EVENT_TYPE, feedback.feedback_id, source=source, time_ms=accepted_at_ms, traceparent=traceparent)
    value = feedback.to_proto(accepted_at_ms=accepted_at_ms).SerializeToString()
    return Record(feedback.feedback_id, accepted_at_ms, canonical_id(feedback.user_id, "user_id").encode(), value, headers)


def headers_of(event_type: str, event_id: str, *, source: str, time_ms: int, traceparent: str) -> list[tuple[str, bytes]]:
    """Return the headers of a record: CloudEvents, and the trace context when there is one. `time_ms`: Unix milliseconds."""
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", event_id.encode()),
        ("ce_type", event_type.encode()),
        ("ce_source", source.encode()),
        ("ce_time", _rfc3339(time_ms)),
        ("content-type", b"application/protobuf"),
    ]
    if traceparent:
        headers.append(("traceparent", traceparent.encode()))
    return headers


def _rfc3339(unix_ms: int) -> bytes:
    seconds, millis = divmod(unix_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{millis:03d}Z".encode()
