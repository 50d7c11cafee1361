"""How a record that is set aside is written to its dead-letter topic. No I/O, no clock."""

from __future__ import annotations

from services.common.events.dead_letters import dead_letter, dead_letter_headers
from streams.partitioned.records import DeadLetter, Outgoing


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
