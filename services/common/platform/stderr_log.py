"""The log of one process: lines on stderr, and the Kafka clients' repetitions damped."""

from __future__ import annotations

import logging
import sys
import time

from typing_extensions import override

from services.common.platform.errors import shortened
from services.common.platform.secrets import Redactor

_DAMPED_S = 10.0
# What a producer sent may stand in a message: of a longer one, and of a longer traceback, begin and end are shown.
_MAX_RECORD_CHARS = 16_000


class Damper(logging.Filter):
    """Lets a Kafka client's message through once in ten seconds: while the broker is down it says the same ten times a second.

    A connection that a broker's death resets is one line, without the library's stack: nobody has to act on it.
    """

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
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, OSError):
            record.msg, record.args = "%s: %r", (record.getMessage(), error)
            record.exc_info = record.exc_text = None
        return True


class _RedactedFormatter(logging.Formatter):
    """Formats a record, its traceback included, without secrets and of bounded length."""

    converter = time.gmtime  # type: ignore[assignment]  # as its documentation says; the stub knows a narrower type

    def __init__(self, service_name: str, redact: Redactor) -> None:
        super().__init__(f"%(asctime)s.%(msecs)03dZ %(levelname)s {service_name} %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self._redact = redact

    @override
    def format(self, record: logging.LogRecord) -> str:
        return shortened(self._redact(super().format(record)), _MAX_RECORD_CHARS)


def configure_logging(service_name: str, redact: Redactor, level: int = logging.INFO) -> None:
    """Log to stderr, one line a record: time (UTC), level, service, logger, message; `redact` takes secrets out."""
    formatter = _RedactedFormatter(service_name, redact)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(Damper())
    logging.basicConfig(level=level, handlers=[handler])
