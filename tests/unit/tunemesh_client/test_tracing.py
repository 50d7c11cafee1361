"""The trace context that goes along."""

import subprocess
import sys

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from tunemesh_client.tracing import active_traceparent


def test_the_active_span_is_sent_along_and_none_is_nothing() -> None:
    assert active_traceparent() == ""
    span = TracerProvider().get_tracer("test").start_span("call")
    with trace.use_span(span):
        version, trace_id, span_id, flags = active_traceparent().split("-")
    context = span.get_span_context()
    assert (version, int(trace_id, 16), int(span_id, 16)) == ("00", context.trace_id, context.span_id)
    assert int(flags, 16) & 1


def test_opentelemetry_is_not_imported_for_it() -> None:
    script = "import sys, tunemesh_client.tracing as t; assert t.active_traceparent() == ''; print('opentelemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"
