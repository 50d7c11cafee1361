"""The W3C trace context as it travels: out of the active span, in gRPC metadata, in Kafka headers.

Source: W3C Trace Context, section 3.2. Knows no exporter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, TraceFlags

TRACEPARENT = "traceparent"

# The CloudEvents SDKs write an event's traceparent as any of its attributes.
_KAFKA_NAMES = (TRACEPARENT, f"ce_{TRACEPARENT}")

# A later version may append fields; nobody writes more than this.
_LONGEST_BYTES = 512
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def current_traceparent() -> str:
    """Return the W3C traceparent of the active span, or "" when there is none."""
    context = trace.get_current_span().get_span_context()
    return _format(context) if context.is_valid else ""


def outgoing_metadata() -> tuple[tuple[str, str], ...]:
    """Return gRPC metadata that carries the active span. Passed per call: an interceptor on a grpc.aio channel costs a task per call."""
    return metadata_of(current_traceparent())


def metadata_of(traceparent: str) -> tuple[tuple[str, str], ...]:
    """Return gRPC metadata that carries a traceparent; none for ""."""
    return ((TRACEPARENT, traceparent),) if traceparent else ()


def traceparent_of(headers: Iterable[tuple[str, Any]] | Mapping[str, Any] | None) -> str:
    """Return the traceparent among Kafka headers or gRPC metadata (values str or bytes; None is none), or ""."""
    if not headers:
        return ""
    pairs: Iterable[tuple[str, Any]] = headers.items() if isinstance(headers, Mapping) else headers
    for key, value in pairs:
        if key in _KAFKA_NAMES and value is not None:
            return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return ""


def valid_traceparent(raw: bytes) -> str:
    """Return a header's traceparent in the 55 bytes of version 00; "" when it is none."""
    match = _TRACEPARENT.fullmatch(raw[:_LONGEST_BYTES].decode("ascii", "replace"))
    return f"00-{match[1]}-{match[2]}-{match[3]}" if match else ""


def _format(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def remote_span(traceparent: str) -> Span:
    """Return the span that a header names; an invalid one for a malformed header, as W3C Trace Context asks (section 3.2.2.5)."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return trace.INVALID_SPAN
    flags = TraceFlags(int(match[3], 16))
    return NonRecordingSpan(SpanContext(int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=flags))


def sampled_link(traceparent: str) -> Link | None:
    """Return a link to the span that a header names; None when that is not sampled, or the header is empty or malformed."""
    if not traceparent:
        return None
    context = remote_span(traceparent).get_span_context()
    # A bit among others: OpenTelemetry for Python writes 03 and 02 (the random-trace-id bit) where others write 01 and 00.
    return Link(context) if context.is_valid and context.trace_flags.sampled else None
