"""The quality stream's wiring: one thread reads the topics and closes the windows; health and metrics are served beside it.

While the broker is down windows are empty; metrics and health go on (NOT_SERVING until it is back). Windows are at-most-once: what comes
while the process is down is in none.
"""

from __future__ import annotations

import asyncio
import logging
import threading

from services.common.events.dead_letter_writer import dead_letter_writer
from services.common.events.envelope import MalformedRecord
from services.common.events.topics import REPLICAS
from services.common.events.undeliverable import Undeliverable
from services.common.platform.clock import wall_ms
from services.common.platform.errors import Unavailable
from services.common.platform.grpc_server import GrpcServer
from services.common.platform.telemetry import Telemetry
from services.common.ranker.feature_spec import FeatureSpec
from streams.quality.codec import Taker, column_names
from streams.quality.core import Quality, Window, over_at
from streams.quality.drift import Drift
from streams.quality.metrics import MetricsServer, QualityMetrics
from streams.quality.quality_log import QualityLog
from streams.quality.reference_file import load_reference, save_reference
from streams.quality.settings import QualitySettings

_POLL_MS = 200
_RETRY_S = 1.0

_log = logging.getLogger(__name__)


class QualityStream:
    """The whole process: `run` it, and `stop` it afterwards."""

    def __init__(self, settings: QualitySettings, telemetry: Telemetry) -> None:
        """Reads the feature spec and a saved reference; connects nothing.

        Raises:
            ConfigurationError: one of them is wrong.
        """
        self._settings = settings
        spec = FeatureSpec.load(settings.feature_spec_path)
        self._drift = Drift(
            column_names(spec),
            schema_hash=spec.schema_hash,
            num_windows=settings.reference_windows,
            num_bins=settings.psi_bins,
            limit=settings.drift_limit,
            max_references=settings.max_series,
        )
        if settings.reference_path is not None:
            load_reference(settings.reference_path, self._drift)
        self._quality = Quality(spec, self._drift, settings)
        self._taker = Taker(self._quality, spec)
        self._metrics = QualityMetrics()
        self._server: MetricsServer | None = None
        self._stopped = threading.Event()
        self._ended = threading.Event()
        self._ended.set()
        self._window_end_ms = 0
        self._num_saved = 0
        self._letters = dead_letter_writer(
            settings.kafka_bootstrap_servers, REPLICAS, source="/tunemesh/quality", compression=settings.kafka_compression
        )
        self._undeliverable = Undeliverable(telemetry)
        self._records = telemetry.meter.create_counter("quality.records", description="Records read, by topic.")
        self._windows = telemetry.meter.create_counter("quality.windows", description="Windows closed, by kind.")
        self._alarms = telemetry.meter.create_counter("quality.alarms", description="Alarms in windows, by name.")

    async def run(self, server: GrpcServer) -> None:
        """Serve metrics and make windows until `stop`.

        Raises:
            ConfigurationError: the metrics' port is taken.
        """
        self._server = MetricsServer(self._metrics, host=self._settings.host, port=self._settings.metrics_port)
        self._ended.clear()
        await asyncio.to_thread(self._work, server)

    async def stop(self) -> None:
        """End the thread and close what it opened."""
        self._stopped.set()
        await asyncio.to_thread(self._ended.wait, 10.0)
        await asyncio.to_thread(self._letters.close)
        if self._server is not None:
            await asyncio.to_thread(self._server.close)

    def _open_log(self) -> QualityLog:
        settings = self._settings
        return QualityLog(
            settings.kafka_bootstrap_servers, self._undeliverable, recall_ms=settings.recall_ms, compression=settings.kafka_compression
        )

    def _work(self, server: GrpcServer) -> None:
        self._window_end_ms = self._end_after(wall_ms())
        log: QualityLog | None = None
        try:
            while not self._stopped.is_set():
                try:
                    if log is None:
                        log = self._open_log()
                        server.set_serving_threadsafe(True)
                        _log.info("reading from %s", self._settings.kafka_bootstrap_servers)
                    self._read(log)
                    self._close_window(log)
                except Unavailable as error:
                    _log.warning("%s; trying again in %.0f s", error, _RETRY_S)
                    server.set_serving_threadsafe(False)
                    if log is not None:
                        log.close()
                        log = None
                    self._close_window(None)
                    self._stopped.wait(_RETRY_S)
        finally:
            if log is not None:
                log.close()
            self._ended.set()

    def _read(self, log: QualityLog) -> None:
        for record in log.poll(min(_POLL_MS, max(1, self._window_end_ms - wall_ms()))):
            self._records.add(1, {"topic": record.topic})
            try:
                self._taker.take(record, is_recalled=record.timestamp < log.started_ms)
            except MalformedRecord as error:
                _log.debug("%s[%d]@%d is left out: %s", record.topic, record.partition, record.offset, error)
                if record.topic == REPLICAS.name:  # those of the other topics are written by who owns them
                    self._letters.set_aside(record, str(error))

    def _close_window(self, log: QualityLog | None) -> None:
        now_ms = wall_ms()
        over = over_at(now_ms, self._window_end_ms, self._settings.window_ms)
        if over is None:
            return
        windows = self._quality.close(*over)
        self._window_end_ms = self._end_after(now_ms)
        self._metrics.show(windows)
        self._say(windows)
        if self._settings.reference_path is not None and self._drift.num_completed > self._num_saved:
            self._num_saved = self._drift.num_completed
            save_reference(self._settings.reference_path, self._drift)
        if log is not None:
            log.publish(windows)

    def _say(self, windows: list[Window]) -> None:
        for window in windows:
            self._windows.add(1, {"kind": window.key.kind})
            for alarm in window.alarms:
                self._alarms.add(1, {"alarm": alarm.name})
                _log.warning("alarm %s %s: %.4g above %.4g: %s", alarm.name, "/".join(window.key), alarm.value, alarm.limit, alarm.detail)

    def _end_after(self, now_ms: int) -> int:
        """Windows begin at multiples of their length, so those of several processes match."""
        return (now_ms // self._settings.window_ms + 1) * self._settings.window_ms
