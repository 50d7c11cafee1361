"""feedback.v1: from its records to `Feedback` and back."""

from __future__ import annotations

from tunemesh.events.v1 import feedback_pb2

from services.common.events import feedback as rules
from services.common.events.envelope import Headers, MalformedRecord, parse_value
from services.common.events.feedback import Feedback
from services.common.events.limits import check_time
from services.common.platform.ids import canonical_id
from services.common.platform.traceparent import traceparent_of


def read_feedback(value: bytes | None, headers: Headers | None, now_ms: int) -> Feedback:
    """Return the feedback in a record.

    Args:
        value: of the record.
        headers: of the record.
        now_ms: wall clock, Unix milliseconds.
    Raises:
        MalformedRecord: it does not parse, or breaks the contract; the message names the field.
    """
    feedback = parse_feedback(value, headers)
    check_feedback(feedback, now_ms)
    return feedback


def parse_feedback(value: bytes | None, headers: Headers | None) -> Feedback:
    """Return the feedback in a record, whatever its fields say; for a reader that tells malformed feedback apart, or shows it.

    Raises:
        MalformedRecord: it does not parse.
    """
    return feedback_of(parse_value(value, headers, feedback_pb2.Feedback), traceparent_of(headers))


def check_feedback(feedback: Feedback, now_ms: int) -> None:
    """Raise MalformedRecord, naming the field, unless the feedback of a record keeps the contract."""
    rules.check(feedback, MalformedRecord)
    check_time("accepted_at_ms", feedback.accepted_at_ms, now_ms, MalformedRecord)


def feedback_of(message: feedback_pb2.Feedback, traceparent: str = "") -> Feedback:
    """Return a message as feedback, with the ids of user and item in canonical form."""
    return Feedback(
        feedback_id=message.feedback_id,
        request_id=message.request_id,
        user_id=canonical_id(message.user_id),
        item_id=canonical_id(message.item_id),
        kind=message.kind,
        value=message.value,
        accepted_at_ms=message.accepted_at_ms,
        original_time_ms=message.original_time_ms,
        text=message.text,
        traceparent=traceparent,
    )


def feedback_message(feedback: Feedback) -> feedback_pb2.Feedback:
    """Return feedback as a message; its trace belongs in the record's headers."""
    return feedback_pb2.Feedback(
        feedback_id=feedback.feedback_id,
        request_id=feedback.request_id,
        user_id=feedback.user_id,
        item_id=feedback.item_id,
        kind=feedback.kind,
        value=feedback.value,
        accepted_at_ms=feedback.accepted_at_ms,
        original_time_ms=feedback.original_time_ms,
        text=feedback.text,
    )
