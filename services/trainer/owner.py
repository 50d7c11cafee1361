"""Writes control.v1 as its one owner: compare-and-set on a log that only appends.

A record wins when it landed right behind the state that it was decided on. One that did not is looked at again; see `control` for why a
loser writes the winner's value once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from tunemesh.events.v1.control_pb2 import ControlRecord

from services.common.platform.control import ControlState
from services.common.platform.errors import Unavailable

_ATTEMPTS = 5
ANSWER_TIMEOUT_MS = 20_000
"""How long the broker may take to answer an epoch that begins: without the answer the trainer ends."""
LOOK_TIMEOUT_MS = 2_000
"""How long one look at the broker may block the worker, and with it the control API; the next look is soon."""


class ControlLog(Protocol):
    """control.v1, read from its beginning."""

    @property
    def position(self) -> int:
        """Offset behind the last record that `read` covered."""

    def read(self, timeout_ms: int) -> Sequence[tuple[int, ControlRecord]]:
        """Return the records, with their offsets, from `position` to the present end; each step may take timeout_ms."""

    def append(self, record: ControlRecord) -> int:
        """Write a record and return its offset once the broker has acknowledged it."""


class ControlOwner:
    """The folded control log, and changes to it.

    Attributes:
        state: as of the last `sync`.
    """

    def __init__(self, log: ControlLog, *, actor: str, now_ms: Callable[[], int]) -> None:
        """Nothing is read before the first `sync`.

        Args:
            log: control.v1.
            actor: who signs reassertions.
            now_ms: Unix milliseconds.
        """
        self.state = ControlState()
        self._log = log
        self._actor = actor
        self._now_ms = now_ms
        self._believed_at: dict[str, int] = {}

    def sync(self, timeout_ms: int = LOOK_TIMEOUT_MS) -> list[int]:
        """Fold what is new, to the present end; return the offsets read. The broker may take `timeout_ms` to answer."""
        offsets = []
        for offset, record in self._log.read(timeout_ms):
            offsets.append(offset)
            if self.state.apply(record):
                self._believed_at[record.subject] = offset
        return offsets

    def write(self, decide: Callable[[ControlState], ControlRecord], timeout_ms: int = LOOK_TIMEOUT_MS) -> ControlRecord:
        """Write the record that `decide` makes of the newest state; decide again as long as somebody else comes first.

        Args:
            decide: is given the state.
            timeout_ms: how long the broker may take to answer each look.
        Returns:
            the record, which is now believed by every reader.
        Raises:
            Unavailable: others kept coming first. Retrying helps.
            Exception: whatever `decide` raises, e.g. a conflict.
        """
        for _ in range(_ATTEMPTS):
            self.sync(timeout_ms)
            record = decide(self.state)
            decided_at = self._log.position
            offset = self._log.append(record)
            seen = self.sync(timeout_ms)
            if self._believed_at.get(record.subject) != offset:
                self._log.append(self.state.reassertion(record.subject, above=record.version, now_ms=self._now_ms(), actor=self._actor))
            elif set(range(decided_at, offset + 1)) <= set(seen):
                return record
            # Else compaction removed something between: it may have been a winner that others believe. Decide again, above both.
        raise Unavailable(f"control.v1 changed {_ATTEMPTS} times while {record.subject!r} was being written: try again")
