"""Traces, metrics and logs of one process: OTLP when an endpoint is set, else JSON-lines files that tests and people read.

An instance is made once at the wiring (`configure`) and handed down; there is no global. A span that is not sampled costs 3 to 5 µs
(the SDK's own: 19), because the decision is taken here, before the SDK is asked; a sampled one 46 µs, its line in the file included.
Knows no service, no gRPC and no Kafka.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from services.common.platform.clock import wall_ms
from services.common.platform.errors import ConfigurationError

TRACEPARENT = "traceparent"

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SPAN_FLUSH_MS = 500
_METRIC_FLUSH_MS = 5_000
_MAX_LINKS = 64
_DAMPED_S = 10.0

_log = logging.getLogger(__name__)

Attributes = Mapping[str, AttributeValue]


class TelemetrySettings(Protocol):
    """The settings that telemetry needs; every BaseServiceSettings has them."""

    @property
    def telemetry_dir(self) -> Path: ...  # noqa: D102
    @property
    def telemetry_sample_ratio(self) -> float: ...  # noqa: D102
    @property
    def otlp_endpoint(self) -> str | None: ...  # noqa: D102


def configure(service_name: str, settings: TelemetrySettings) -> Telemetry:
    """Return the telemetry of this process, and set up logging to stderr.

    Raises:
        ConfigurationError: the telemetry folder cannot be written.
    """
    configure_logging(service_name)
    resource = Resource.create({"service.name": service_name, "process.pid": os.getpid()})
    tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    spans, metrics, metric_flush_ms = _exporters(service_name, settings)
    tracer_provider.add_span_processor(BatchSpanProcessor(spans, schedule_delay_millis=_SPAN_FLUSH_MS))
    reader = PeriodicExportingMetricReader(metrics, export_interval_millis=metric_flush_ms)
    meter_provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    return Telemetry(service_name, tracer_provider, meter_provider, settings.telemetry_sample_ratio)


def disabled(service_name: str = "test") -> Telemetry:
    """Return telemetry that records nothing and starts no thread."""
    return Telemetry(service_name, TracerProvider(shutdown_on_exit=False), MeterProvider(shutdown_on_exit=False), 0.0)


def _exporters(service_name: str, settings: TelemetrySettings) -> tuple[SpanExporter, MetricExporter, int]:
    if settings.otlp_endpoint:
        # Imported here: it costs 0.2 s of start-up that a process with local files need not pay.
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        insecure = not settings.otlp_endpoint.startswith("https://")
        spans = OTLPSpanExporter(endpoint=settings.otlp_endpoint, insecure=insecure)
        return spans, OTLPMetricExporter(endpoint=settings.otlp_endpoint, insecure=insecure), 4 * _METRIC_FLUSH_MS
    stem = f"{service_name}-{os.getpid()}"
    folder = settings.telemetry_dir
    return (
        FileSpanExporter(service_name, _open_append(folder, f"{stem}.jsonl")),
        FileMetricExporter(service_name, _open_append(folder, f"{stem}.metrics.jsonl")),
        _METRIC_FLUSH_MS,
    )


def _open_append(folder: Path, name: str) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / name).open("a", encoding="utf-8")
    except OSError as error:
        message = f"telemetry folder {folder} cannot be written ({error.strerror}): set TUNEMESH_TELEMETRY_DIR to a folder that can"
        raise ConfigurationError(message) from error


class Telemetry:
    """One process's spans and metrics.

    Attributes:
        service_name: the name under which spans and metrics are recorded.
        meter: makes counters and histograms (opentelemetry.metrics.Meter).
    """

    def __init__(self, service_name: str, tracer_provider: TracerProvider, meter_provider: MeterProvider, sample_ratio: float) -> None:
        self.service_name = service_name
        self.meter: Meter = meter_provider.get_meter("tunemesh")
        self._tracer = tracer_provider.get_tracer("tunemesh")
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._sample_ratio = sample_ratio
        # All traces of this process that are not sampled share one id: nobody ever looks for them.
        self._unsampled = NonRecordingSpan(
            SpanContext(
                random.getrandbits(128) | 1, random.getrandbits(64) | 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.DEFAULT)
            )
        )

    def span(
        self,
        name: str,
        *,
        parent: str | None = None,
        links: Iterable[str] = (),
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes | None = None,
    ) -> SpanScope:
        """Return a context manager that runs its block in a new span; an exception marks the span as failed.

        Args:
            name: low-cardinality name, e.g. "joiner.join".
            parent: a traceparent header. None or "": the span that is active here, else a new trace.
            links: traceparent headers of what was merged into this work (at most 64 are kept); un-sampled and empty ones are
                left out. A new trace that was offered links is recorded if and only if one of them is.
            kind: SERVER, CLIENT, PRODUCER, CONSUMER or INTERNAL.
            attributes: what is known at the start.
        """
        parent_span = _remote_span(parent) if parent else trace.get_current_span()
        parent_context = parent_span.get_span_context()
        link_list = list(links)
        kept = [link for link in map(_sampled_link, link_list[:_MAX_LINKS]) if link is not None] if link_list else []
        if parent_context.is_valid:
            if not parent_context.trace_flags & TraceFlags.SAMPLED:
                return SpanScope(parent_span)
        elif not (kept if link_list else self._sample()):
            return SpanScope(self._unsampled)
        base = trace.set_span_in_context(parent_span, Context()) if parent_context.is_valid else Context()
        return SpanScope(self._tracer.start_span(name, base, kind, attributes, kept))

    def _sample(self) -> bool:
        return self._sample_ratio >= 1.0 or random.random() < self._sample_ratio

    def flush(self) -> None:
        """Write out what is buffered; blocks for at most a few seconds."""
        self._tracer_provider.force_flush(5_000)
        self._meter_provider.force_flush(5_000)

    def shutdown(self) -> None:
        """Flush and stop the background threads. Call once, last."""
        self._tracer_provider.shutdown()
        self._meter_provider.shutdown()


class SpanScope:
    """Makes a span current for a block, then ends it. A class, not a generator: half the cost of contextlib's."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> Span:
        self._token = otel_context.attach(trace.set_span_in_context(self._span))
        return self._span

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        otel_context.detach(self._token)
        span = self._span
        if not span.is_recording():
            return
        if kind is not None:
            span.set_status(Status(StatusCode.ERROR, f"{kind.__name__}: {error}"))
        span.end()


def current_traceparent() -> str:
    """Return the W3C traceparent of the active span, or "" when there is none."""
    context = trace.get_current_span().get_span_context()
    return _format(context) if context.is_valid else ""


def outgoing_metadata() -> tuple[tuple[str, str], ...]:
    """Return gRPC metadata that carries the active span. Passed per call: an interceptor on a grpc.aio channel costs a task per call."""
    traceparent = current_traceparent()
    return ((TRACEPARENT, traceparent),) if traceparent else ()


def traceparent_of(headers: Iterable[tuple[str, Any]] | Mapping[str, Any] | None) -> str:
    """Return the traceparent among Kafka headers or gRPC metadata (values str or bytes), or ""."""
    if not headers:
        return ""
    pairs: Iterable[tuple[str, Any]] = headers.items() if isinstance(headers, Mapping) else headers
    for key, value in pairs:
        if key == TRACEPARENT:
            return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return ""


def _format(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _remote_span(traceparent: str) -> Span:
    """A malformed header counts as none, as W3C Trace Context asks (section 3.2.2.5)."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return trace.INVALID_SPAN
    flags = TraceFlags(int(match[3], 16))
    return NonRecordingSpan(SpanContext(int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=flags))


def _sampled_link(traceparent: str) -> Link | None:
    if not traceparent or traceparent.endswith("-00"):
        return None
    context = _remote_span(traceparent).get_span_context()
    return Link(context) if context.is_valid else None


class FileSpanExporter(SpanExporter):
    """Writes one JSON object a span and line.

    Keys: name, service, trace_id, span_id, parent_id, kind, start_ns, end_ns, status, status_detail, links, attributes.
    """

    def __init__(self, service_name: str, file: TextIO) -> None:
        """Take ownership of `file`."""
        self._service = service_name
        self._file = file

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append and flush, so that a process that is killed loses at most one interval."""
        self._file.write("".join(json.dumps(self._row(span), separators=(",", ":")) + "\n" for span in spans))
        self._file.flush()
        return SpanExportResult.SUCCESS

    def _row(self, span: ReadableSpan) -> dict[str, Any]:
        context = span.get_span_context()
        return {
            "name": span.name,
            "service": self._service,
            "trace_id": f"{context.trace_id:032x}" if context else "",
            "span_id": f"{context.span_id:016x}" if context else "",
            "parent_id": f"{span.parent.span_id:016x}" if span.parent else "",
            "kind": span.kind.name,
            "start_ns": span.start_time,
            "end_ns": span.end_time,
            "status": span.status.status_code.name,
            "status_detail": span.status.description or "",
            "links": [{"trace_id": f"{link.context.trace_id:032x}", "span_id": f"{link.context.span_id:016x}"} for link in span.links],
            "attributes": dict(span.attributes or {}),
        }

    def shutdown(self) -> None:
        """Close the file."""
        self._file.close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - the SDK's signature
        """Nothing is buffered here."""
        return True


class FileMetricExporter(MetricExporter):
    """Writes one JSON object a data point and line: metric, service, time_ms, unit, attributes, and value or count/sum/bounds/buckets."""

    def __init__(self, service_name: str, file: TextIO) -> None:
        """Take ownership of `file`."""
        super().__init__()
        self._service = service_name
        self._file = file

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any) -> MetricExportResult:  # noqa: ARG002 - as above
        """Append and flush every data point of this interval."""
        lines = [json.dumps(row, separators=(",", ":")) + "\n" for row in self._rows(metrics_data)]
        self._file.write("".join(lines))
        self._file.flush()
        return MetricExportResult.SUCCESS

    def _rows(self, data: MetricsData) -> Iterator[dict[str, Any]]:
        now_ms = wall_ms()
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        row = {"metric": metric.name, "service": self._service, "time_ms": now_ms, "unit": metric.unit or ""}
                        yield {**row, "attributes": dict(point.attributes or {}), **_point_values(point)}

    def force_flush(self, timeout_millis: float = 10_000) -> bool:  # noqa: ARG002 - the SDK's signature
        """Nothing is buffered here."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:  # noqa: ARG002 - the SDK's signature
        """Close the file."""
        self._file.close()


def _point_values(point: Any) -> dict[str, Any]:
    if isinstance(point, NumberDataPoint):
        return {"value": point.value}
    if isinstance(point, HistogramDataPoint):
        return {"count": point.count, "sum": point.sum, "bounds": list(point.explicit_bounds), "buckets": list(point.bucket_counts)}
    return {"value": str(point)}


def read_spans(folder: Path) -> list[dict[str, Any]]:
    """Return all spans that local file exporters wrote under `folder`, oldest start first. A half-written last line is left out."""
    spans: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.jsonl")):
        if path.name.endswith(".metrics.jsonl"):
            continue
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        spans.extend(json.loads(line) for line in lines if line.endswith("\n"))
    return sorted(spans, key=lambda span: int(span["start_ns"]))


class _Damper(logging.Filter):
    """Lets a Kafka client's message through once in ten seconds: while the broker is away it says the same ten times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._next: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is to be logged."""
        if not record.name.startswith(("aiokafka", "kafka")):
            return True
        what = (record.name, str(record.msg))
        if record.created < self._next.get(what, 0.0):
            return False
        self._next[what] = record.created + _DAMPED_S
        return True


def configure_logging(service_name: str, level: int = logging.INFO) -> None:
    """Log to stderr, one line a record: time (UTC), level, service, logger, message."""
    formatter = logging.Formatter(f"%(asctime)s.%(msecs)03dZ %(levelname)s {service_name} %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(_Damper())
    logging.basicConfig(level=level, handlers=[handler])
