"""Whether a tick before its time helps anybody. Pure: no I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Freshness:
    """What the ticks of one partition have yet to say about the feedback that was joined.

    A tick behind the samples lets the trainer learn them at once. Another one `allowance_ms` after the feedback was accepted says that all
    feedback of that time is contained: the watermark passes it. All times are Unix milliseconds.
    """

    allowance_ms: int
    _newest_ms: int = 0  # acceptance of the newest feedback joined since the last tick; 0: none was
    _passed_ms: int = 0  # at this time the watermark may pass the newest feedback joined before the last tick; 0: it has

    def joined(self, accepted_at_ms: int) -> None:
        """Note that feedback was joined."""
        self._newest_ms = max(self._newest_ms, accepted_at_ms)

    def ticked(self, now_ms: int) -> None:
        """Note a tick."""
        if self._newest_ms:
            # A sender whose clock runs ahead asks for no more than others.
            self._passed_ms = max(self._passed_ms, min(self._newest_ms, now_ms) + self.allowance_ms)
            self._newest_ms = 0
        if self._passed_ms <= now_ms:
            self._passed_ms = 0

    def wants_tick(self, now_ms: int) -> bool:
        """Return whether a tick now would say something new."""
        return self._newest_ms > 0 or 0 < self._passed_ms <= now_ms
