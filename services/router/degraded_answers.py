"""The count of answers that are not whole."""

from __future__ import annotations

import logging
import time

from services.common.platform.telemetry import Telemetry

_LOG_EVERY_S = 10.0

_log = logging.getLogger(__name__)


class DegradedAnswers:
    """Counts answers that are not whole, and logs each reason at most once in ten seconds."""

    def __init__(self, telemetry: Telemetry) -> None:
        """Records the counter `router.degraded` by reason."""
        self._counter = telemetry.meter.create_counter("router.degraded", description="Answers with a degraded_reason.")
        self._next_log_s: dict[str, float] = {}
        self._since_log: dict[str, int] = {}

    def note(self, reason: str) -> None:
        """Take note of one degraded answer."""
        self._counter.add(1, {"reason": reason})
        self._since_log[reason] = self._since_log.get(reason, 0) + 1
        now_s = time.monotonic()
        if now_s >= self._next_log_s.get(reason, 0.0):
            _log.warning("%d degraded answers: %s", self._since_log[reason], reason)
            self._next_log_s[reason] = now_s + _LOG_EVERY_S
            self._since_log[reason] = 0
