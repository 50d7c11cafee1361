"""Traces and metrics of one process: OTLP when an endpoint is set, else JSON-lines files that tests and people read.

An instance is made once at the wiring (`configure`) and handed down; there is no global. A span that is not sampled costs 3 to 5 µs
(the SDK's own: 19), because the decision is taken here, before the SDK is asked; a sampled one 46 µs, its line in the file included.
Knows no service, no gRPC and no Kafka.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram, Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from services.common.platform.secrets import Redactor
from services.common.platform.settings import process_redactor
from services.common.platform.stderr_log import configure_logging
from services.common.platform.telemetry_files import FileMetricExporter, FileSpanExporter, open_append
from services.common.platform.traceparent import remote_span, sampled_link

_SPAN_FLUSH_MS = 500
_METRIC_FLUSH_MS = 5_000
_MAX_LINKS = 64

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
    redact = process_redactor()
    configure_logging(service_name, redact)
    resource = Resource.create({"service.name": service_name, "process.pid": os.getpid()})
    tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    spans, metrics, metric_flush_ms = _exporters(service_name, settings)
    tracer_provider.add_span_processor(BatchSpanProcessor(spans, schedule_delay_millis=_SPAN_FLUSH_MS))
    reader = PeriodicExportingMetricReader(metrics, export_interval_millis=metric_flush_ms)
    meter_provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    return Telemetry(service_name, tracer_provider, meter_provider, settings.telemetry_sample_ratio, redact)


def disabled(service_name: str = "test") -> Telemetry:
    """Return telemetry that records nothing and starts no thread."""
    return Telemetry(service_name, TracerProvider(shutdown_on_exit=False), MeterProvider(shutdown_on_exit=False), 0.0, Redactor())


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
        FileSpanExporter(service_name, open_append(folder, f"{stem}.jsonl")),
        FileMetricExporter(service_name, open_append(folder, f"{stem}.metrics.jsonl")),
        _METRIC_FLUSH_MS,
    )


class Telemetry:
    """One process's spans and metrics.

    Attributes:
        service_name: the name under which spans and metrics are recorded.
        meter: makes counters and histograms (opentelemetry.metrics.Meter).
        redact: returns a text without this process's secrets; for what is told to callers.
    """

    def __init__(
        self,
        service_name: str,
        tracer_provider: TracerProvider,
        meter_provider: MeterProvider,
        sample_ratio: float,
        redact: Redactor,
    ) -> None:
        self.service_name = service_name
        self.redact = redact
        self.meter: Meter = meter_provider.get_meter("tunemesh")
        self._tracer = tracer_provider.get_tracer("tunemesh")
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._sample_ratio = sample_ratio
        self._histograms: dict[str, Histogram] = {}
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
        parent_span = remote_span(parent) if parent else trace.get_current_span()
        parent_context = parent_span.get_span_context()
        link_list = list(links)
        kept = [link for link in map(sampled_link, link_list[:_MAX_LINKS]) if link is not None] if link_list else []
        if parent_context.is_valid:
            if not parent_context.trace_flags & TraceFlags.SAMPLED:
                return SpanScope(parent_span, self.redact)
        elif not (kept if link_list else self._sample()):
            return SpanScope(self._unsampled, self.redact)
        base = trace.set_span_in_context(parent_span, Context()) if parent_context.is_valid else Context()
        return SpanScope(self._tracer.start_span(name, base, kind, attributes, kept), self.redact)

    def histogram(self, name: str, *, unit: str, description: str) -> Histogram:
        """Return the histogram of this name; whoever asks first makes it."""
        found = self._histograms.get(name)
        if found is None:
            found = self._histograms[name] = self.meter.create_histogram(name, unit=unit, description=description)
        return found

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

    __slots__ = ("_redact", "_span", "_token")

    def __init__(self, span: Span, redact: Redactor) -> None:
        self._span = span
        self._redact = redact

    def __enter__(self) -> Span:
        self._token = otel_context.attach(trace.set_span_in_context(self._span))
        return self._span

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        otel_context.detach(self._token)
        span = self._span
        if not span.is_recording():
            return
        if kind is not None:
            span.set_status(Status(StatusCode.ERROR, self._redact(f"{kind.__name__}: {error}")))
        span.end()
