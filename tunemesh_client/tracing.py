"""The caller's trace context, sent along with calls and events so that the mesh's spans continue it."""

from __future__ import annotations

import sys
from typing import Any


def active_traceparent() -> str:
    """Return the W3C traceparent of OpenTelemetry's active span, or "" when there is none.

    OpenTelemetry is not imported here: a program that has no use for it has no span either.
    """
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
