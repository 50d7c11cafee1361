"""Spans and metrics as JSON lines in local files, for a process without an OTLP endpoint; tests and people read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from opentelemetry.sdk.metrics.export import HistogramDataPoint, MetricExporter, MetricExportResult, MetricsData, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from services.common.platform.clock import wall_ms
from services.common.platform.errors import ConfigurationError

# Made once: json.dumps makes one for each line that is not written its own way.
_to_json = json.JSONEncoder(separators=(",", ":")).encode


def open_append(folder: Path, name: str) -> TextIO:
    """Open a file of the telemetry folder, which is made when absent.

    Raises:
        ConfigurationError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / name).open("a", encoding="utf-8")
    except OSError as error:
        message = f"telemetry folder {folder} cannot be written ({error.strerror}): set TUNEMESH_TELEMETRY_DIR to a folder that can"
        raise ConfigurationError(message) from error


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
        self._file.write("".join(_to_json(self._row(span)) + "\n" for span in spans))
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
        lines = [_to_json(row) + "\n" for row in self._rows(metrics_data)]
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
