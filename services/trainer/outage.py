"""Log lines about something that is down: one when that is noticed, one when it is over."""

from __future__ import annotations

import logging
import time

_log = logging.getLogger(__name__)


class Outage:
    """Says once that something does not work, and once that it works again. Not thread-safe."""

    def __init__(self, what: str) -> None:
        """`what`: a sentence for the log, e.g. "samples cannot be read"."""
        self._what = what
        self._since: float | None = None

    def note(self, error: Exception) -> None:
        """Note that an attempt failed."""
        if self._since is None:
            self._since = time.monotonic()
            _log.warning("%s, trying again: %s", self._what, error)

    def end(self) -> None:
        """Note that an attempt succeeded."""
        if self._since is not None:
            _log.warning("it works again after %.0f s (%s)", time.monotonic() - self._since, self._what)
            self._since = None
