"""The last windows as Prometheus metrics, on an HTTP port of their own.

Series live as long as their window: a variant without traffic has none. Labels are bounded by the core (series) and by the mesh (replicas,
features, topics). Names:

    tunemesh_quality_METRIC{kind,variant,model_version}        requests, degraded_ratio, feedback, feedback_rate, mean_score, positive_rate,
                                                               thumbs_up_rate, ttft_p50_ms, ttft_p95_ms, tokens_per_s, error_ratio, …
    tunemesh_quality_psi{kind,variant,model_version,feature}
    tunemesh_quality_METRIC                                    of the mesh: orphan_ratio, unmatched_feedback, mesh_feedback, gradient_norm,
                                                               samples_trained, deltas, replicas, variants_without_reference
    tunemesh_quality_watermark_age_ms{replica}                 replica="" is the oldest
    tunemesh_quality_dead_letters{topic,reason}                in the window
    tunemesh_quality_alarm{alarm,kind,variant,model_version}   the value, while the alarm lasts
    tunemesh_quality_alarms_total{alarm}, tunemesh_quality_windows_total
    tunemesh_quality_window_end_seconds                           Unix time
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.platform.errors import ConfigurationError
from streams.quality.core import MESH, Window

_PREFIX = "tunemesh_quality_"
_KEY = ("kind", "variant", "model_version")
# Metrics whose name carries what is a label here: prefix of the name -> label.
_LABELLED = {"psi.": "feature", "watermark_age_ms.": "replica"}
_DEAD_LETTERS = "dead_letters."

_log = logging.getLogger(__name__)


class QualityMetrics(Collector):
    """Makes the series of the last windows when it is asked. Thread-safe."""

    def __init__(self) -> None:
        """Nothing to tell yet."""
        self._lock = threading.Lock()
        self._windows: Sequence[Window] = ()
        self._alarms: Counter[str] = Counter()
        self._num_windows = 0

    def show(self, windows: Sequence[Window]) -> None:
        """Replace the windows that are told about."""
        with self._lock:
            self._windows = windows
            self._num_windows += len(windows)
            self._alarms.update(alarm.name for window in windows for alarm in window.alarms)

    def collect(self) -> Iterable[Metric]:
        """Return the series of the last windows, and the totals."""
        with self._lock:
            windows, alarms, num_windows = self._windows, Counter(self._alarms), self._num_windows
        yield from _Families().of(windows)
        total = CounterMetricFamily(f"{_PREFIX}alarms", "Windows with this alarm.", labels=["alarm"])
        for name, count in alarms.items():
            total.add_metric([name], count)
        yield total
        yield CounterMetricFamily(f"{_PREFIX}windows", "Windows published.", value=num_windows)
        end_s = max((window.end_ms for window in windows), default=0) / 1e3
        yield GaugeMetricFamily(f"{_PREFIX}window_end_seconds", "End of the last window, Unix time.", value=end_s)


class _Families:
    """Gauges by name, made as values come."""

    def __init__(self) -> None:
        self._gauges: dict[str, GaugeMetricFamily] = {}

    def of(self, windows: Sequence[Window]) -> Iterable[Metric]:
        for window in windows:
            for name, value in window.metrics.items():
                self._add(window, name, value)
            for alarm in window.alarms:
                gauge = self._gauge("alarm", "Value of a number that is beyond its limit.", ("alarm", *_KEY))
                gauge.add_metric([alarm.name, *window.key], alarm.value)
        return self._gauges.values()

    def _add(self, window: Window, name: str, value: float) -> None:
        if name.startswith(_DEAD_LETTERS):
            topic, _, reason = name.removeprefix(_DEAD_LETTERS).rpartition(".")
            self._gauge("dead_letters", "Dead letters in the last window.", ("topic", "reason")).add_metric([topic, reason], value)
            return
        for prefix, label in _LABELLED.items():
            if name == prefix[:-1] or name.startswith(prefix):
                labels = (label,) if window.key.kind == MESH else (*_KEY, label)
                values = [] if window.key.kind == MESH else list(window.key)
                self._gauge(prefix[:-1], f"By {label}, of the last window.", labels).add_metric([*values, name[len(prefix) :]], value)
                return
        if window.key.kind == MESH:
            if name != "dead_letters":  # the sum of those by topic and reason
                self._gauge(_identifier(name), "Of the whole mesh, in the last window.", ()).add_metric([], value)
        else:
            self._gauge(_identifier(name), "Per variant and model version, in the last window.", _KEY).add_metric(list(window.key), value)

    def _gauge(self, name: str, help_text: str, labels: Sequence[str]) -> GaugeMetricFamily:
        # `feedback` exists per variant and for the mesh: one name must not have two sets of labels.
        full = f"{_PREFIX}{'mesh_' if name == 'feedback' and not labels else ''}{name}"
        return self._gauges.setdefault(full, GaugeMetricFamily(full, help_text, labels=labels))


def _identifier(name: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in name)


class MetricsServer:
    """Serves the metrics; close it at the end."""

    def __init__(self, metrics: QualityMetrics, *, host: str, port: int) -> None:
        """Bind and serve, in a thread.

        Raises:
            ConfigurationError: the port is taken.
        """
        registry = CollectorRegistry(auto_describe=False)
        registry.register(metrics)
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise ConfigurationError(
                f"quality cannot serve metrics on {host}:{port} ({error.strerror}): set TUNEMESH_QUALITY_METRICS_PORT to a free port"
            ) from error
        self.port = int(self._server.server_port)
        _log.info("metrics at http://%s:%d/metrics", host, self.port)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
