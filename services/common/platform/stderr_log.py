"""The log of one process: lines on stderr, and the Kafka clients' repetitions damped."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import nullcontext
from typing import TextIO

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


class _StderrLog(logging.StreamHandler[TextIO]):
    """Writes lines until it is ended; what threads log after that, no matter how far they have come with it, is dropped."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._ended = False

    def end(self) -> None:
        """Write no further line; one that is being written is finished first."""
        with self.lock or nullcontext():
            self._ended = True

    @override
    def emit(self, record: logging.LogRecord) -> None:
        """Write the line. Logging calls it with the handler's lock held."""
        if not self._ended:
            super().emit(record)


def end_logging() -> None:
    """Let the log of this process write nothing more, so that what is printed next is the last that it says.

    A supervisor shows the last line of a process that ended; threads that still wait for a broker would otherwise write after it.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _StderrLog):
            handler.end()


def configure_logging(service_name: str, redact: Redactor, level: int = logging.INFO) -> None:
    """Log to stderr, one line a record: time (UTC), level, service, logger, message; `redact` takes secrets out."""
    formatter = _RedactedFormatter(service_name, redact)
    handler = _StderrLog(sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(Damper())
    logging.basicConfig(level=level, handlers=[handler])
