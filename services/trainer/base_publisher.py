"""Publishes the bases of a running epoch beside learning: cut where a delta was cut, written in the checkpoint's thread, then announced.

    delta on its way, with all that was learned -> cut at that moment -> delta acknowledged -> checkpoint, base, announcement

So a replica that loads the base has the same rows as one that has followed up to that delta. All methods run in the worker's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tunemesh.events.v1.delta_pb2 import BasePointer, ReplicaStatus

from services.common.platform.errors import CorruptArtifact
from services.trainer.base_schedule import BaseSchedule
from services.trainer.checkpoint_writer import CheckpointWriter
from services.trainer.checkpoints import Checkpoint
from services.trainer.epoch import Epoch

_log = logging.getLogger(__name__)

# After a base that could not be written or announced.
_RETRY_S = 5.0


class ReplicaReports(Protocol):
    """replicas.v1, followed from its present end."""

    def take(self) -> Sequence[ReplicaStatus]:
        """Return what was reported since the last call; never blocks."""


@dataclass(slots=True, kw_only=True)
class _Round:
    """A base from its cut to its announcement. `seq`: of the delta that has all that is in it."""

    checkpoint: Checkpoint
    seq: int
    steps: int
    is_acknowledged: bool = False
    is_handed_over: bool = False


class BasePublisher:
    """Makes a base when one is due."""

    def __init__(self, schedule: BaseSchedule, reports: ReplicaReports, writer: CheckpointWriter, clock_s: Callable[[], float]) -> None:
        """Nothing happens before `begin`.

        Args:
            schedule: decides when.
            reports: what replicas say.
            writer: writes checkpoint and base in its thread.
            clock_s: seconds, never going back.
        """
        self._schedule, self._reports, self._writer, self._clock_s = schedule, reports, writer, clock_s
        self._round: _Round | None = None
        self._not_before_s = 0.0

    def begin(self, epoch: Epoch) -> None:
        """Go on with an epoch that has just begun; a base of the one before that was not handed to the writer is given up."""
        self._round = None
        age_s = (epoch.now_ms() - epoch.base_created_at_ms) / 1e3
        self._schedule.begin(epoch.publisher.base_id, self._clock_s(), age_s=age_s, steps=epoch.steps_in_base)

    def note(self, epoch: Epoch) -> None:
        """Take note of a base that was published otherwise."""
        self._schedule.published(epoch.publisher.base_id, self._clock_s(), steps=epoch.learner.steps)

    def cut_if_due(self, epoch: Epoch) -> None:
        """Cut a base if one is due. Call it when a delta with all that was learned is on its way, and before anything else is learned."""
        now_s = self._clock_s()
        for report in self._reports.take():
            self._schedule.hear(report, now_s)
        if self._round is not None or self._writer.is_writing or epoch.publisher.refusal or now_s < self._not_before_s:
            return
        reason = self._schedule.due(now_s, steps=epoch.learner.steps)
        if not reason:
            return
        _log.info("a base is made: %s", reason)
        try:
            self._round = _Round(checkpoint=epoch.cut_for_base(), seq=epoch.publisher.seq + 1, steps=epoch.learner.steps)
        except CorruptArtifact as error:
            self._retry_later(error)

    @property
    def is_waiting(self) -> bool:
        """Whether a cut waits for its delta's acknowledgement, or for the writer."""
        return self._round is not None and not self._round.is_handed_over

    def advance(self, epoch: Epoch) -> None:
        """Hand the cut to the writer once its delta is acknowledged. Call it before the next delta is on its way."""
        at, publisher = self._round, epoch.publisher
        if at is None or at.is_handed_over:
            return
        if not at.is_acknowledged:
            if not publisher.is_idle:
                return
            if publisher.seq != at.seq:
                self._round = None
                return
            cut = replace(at.checkpoint.cut, delta_offset=publisher.next_offset)
            at.checkpoint, at.is_acknowledged = replace(at.checkpoint, cut=cut, seq=at.seq, within_seq=at.seq), True
        if not self._writer.is_writing:
            at.is_handed_over = True
            self._writer.start_base(epoch, at.checkpoint)

    def collect(self, epoch: Epoch, outcome: BasePointer | Exception | None) -> None:
        """Take what the writer has come to; None: nothing yet, or it wrote something else."""
        if outcome is None or self._round is None:
            return
        at, self._round = self._round, None
        if isinstance(outcome, Exception):
            self._retry_later(outcome)
            return
        epoch.note_base(outcome)
        self._schedule.published(outcome.base_id, self._clock_s(), steps=at.steps)

    def _retry_later(self, error: Exception) -> None:
        self._not_before_s = self._clock_s() + _RETRY_S
        _log.error("the base was not published, trying again in %.0f s: %s", _RETRY_S, error)
