"""Dead letters: what becomes of a record that cannot be used. Builds the record for `<topic>.dlq.v1`; sending it is the caller's.

A dead letter may repeat after a crash of its writer: (source_topic, source_partition, source_offset, reason) names it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunemesh.events.v1 import dead_letter_pb2

from services.common.events import envelope
from services.common.events.limits import MAX_RECORD_BYTES
from services.common.platform.clock import wall_ms
from services.common.platform.traceparent import valid_traceparent

REDRIVEN_HEADER = "tunemesh-redriven"
"""Of a record that `tunemesh dlq redrive` put back into its topic: names its letter."""

# What a stranger may make large as well: parsers quote what they cannot read. A letter that the broker does not take would stop its writer.
_MAX_DETAIL_CHARS = 2_000
_MAX_KEY_BYTES = 16_384
_MAX_HEADER_BYTES = 32_768
_BYTES_AROUND_A_HEADER = 12  # tags and lengths of the map's entry


def dead_letter(
    *,
    topic: str,
    partition: int,
    offset: int,
    reason: str,
    detail: str,
    key: bytes | None = None,
    value: bytes | None = None,
    headers: Sequence[tuple[str, bytes]] | None = None,
    failed_at_ms: int | None = None,
    feedback_id: str = "",
) -> dead_letter_pb2.DeadLetter:
    """Return the dead letter of one record. A value above MAX_RECORD_BYTES is cut, as are a long detail, key and headers; `detail` says so.

    Args:
        topic: where the record was read.
        partition: of that topic.
        offset: of the record.
        reason: one of `services.common.events.dead_letter_reasons`.
        detail: for people: what was wrong and, where there is one, what to do.
        key: the record's key.
        value: the record's value.
        headers: the record's headers; of a repeated name the last one stays.
        failed_at_ms: Unix milliseconds; the wall clock when absent.
        feedback_id: when the record was readable feedback.
    """
    raw, name, kept = value or b"", key or b"", _short_headers(headers or ())
    if len(detail) > _MAX_DETAIL_CHARS:
        detail = f"{detail[:_MAX_DETAIL_CHARS]}…"
    if len(kept) < len({header for header, _ in headers or ()}):
        detail = f"{detail} (headers cut to {_MAX_HEADER_BYTES} bytes)"
    # The letter's own record has the key, too, and whole.
    room = max(0, MAX_RECORD_BYTES - len(name)) if len(name) > _MAX_KEY_BYTES else MAX_RECORD_BYTES
    if len(raw) > room:
        detail = f"{detail} (value cut from {len(raw)} to {room} bytes)"
        raw = raw[:room]
    return dead_letter_pb2.DeadLetter(
        source_topic=topic,
        source_partition=partition,
        source_offset=offset,
        reason=reason,
        detail=detail,
        key=name[:_MAX_KEY_BYTES],
        value=raw,
        headers=kept,
        failed_at_ms=wall_ms() if failed_at_ms is None else failed_at_ms,
        feedback_id=feedback_id,
    )


def _short_headers(headers: Sequence[tuple[str, bytes]]) -> dict[str, bytes]:
    """Return the headers without those that have no room; of a repeated name the last one stays."""
    kept: dict[str, bytes] = {}
    room = _MAX_HEADER_BYTES
    for name, content in {name: content or b"" for name, content in headers}.items():
        size = len(name.encode()) + len(content) + _BYTES_AROUND_A_HEADER
        if size <= room:
            kept[name] = content
            room -= size
    return kept


def dead_letter_headers(letter: dead_letter_pb2.DeadLetter, source: str) -> list[tuple[str, bytes]]:
    """Return the Kafka headers of a dead letter; it keeps the trace of the record that it holds, if that is one."""
    traceparent = valid_traceparent(letter.headers.get("traceparent", b""))
    event_id = f"{letter.source_topic}/{letter.source_partition}/{letter.source_offset}/{letter.reason}"
    return envelope.headers_for("tunemesh.events.v1.DeadLetter", source, event_id=event_id, traceparent=traceparent or None)
