"""Takes samples from samples.v1 into an epoch's merge; what cannot be used goes to the dead-letter topic, with its reason.

Runs in the worker's thread. In which order samples are learned is decided by `merge`, not here.
"""

from __future__ import annotations

import logging
import time
from typing import Protocol

from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.dead_letters import dead_letter
from services.common.platform.errors import Unavailable
from services.common.platform.telemetry import Telemetry
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.epoch import Epoch
from services.trainer.merge import UnusableRecord
from services.trainer.outage import Outage
from services.trainer.restore import RawSample, SampleSource
from services.trainer.samples import UnusableSample, parse_record

_log = logging.getLogger(__name__)

# A partition that is this far ahead of the others is not fetched from until they catch up.
_MAX_BUFFERED = 4_000
_COMPLAINT_INTERVAL_S = 1.0


class DeadLetters(Protocol):
    """The dead-letter topic of samples.v1."""

    def send(self, letter: DeadLetter) -> None:
        """Start writing a letter; raises nothing when the broker cannot take it, `flush` does."""

    def flush(self) -> None:
        """Return when every letter has been acknowledged."""


class SampleIntake:
    """Reads the sample log for one epoch after the other."""

    def __init__(self, source: SampleSource, spec: FeatureSpec, dead_letters: DeadLetters, topic: str, telemetry: Telemetry) -> None:
        """Nothing is read before `take`.

        Args:
            source: positioned by the epoch.
            spec: what samples must fit.
            dead_letters: where unusable samples go.
            topic: name of the sample log, for messages and dead letters.
            telemetry: of this process.
        """
        self._source, self._spec, self._dead_letters, self._topic = source, spec, dead_letters, topic
        self._outage = Outage("samples cannot be read")
        self._next_complaint = 0.0
        self._unusable = telemetry.meter.create_counter("trainer.unusable", description="Sample records set aside, by reason.")

    def take(self, epoch: Epoch, wait_ms: int) -> None:
        """Take what the partitions have, but let none run far ahead of the others; waits at most wait_ms for something."""
        merge = epoch.merge
        num_partitions = len(merge.position.partitions)
        self._source.hold([partition for partition in range(num_partitions) if merge.buffered(partition) >= _MAX_BUFFERED])
        try:
            records = self._source.poll(wait_ms)
        except Unavailable as error:
            self._outage.note(error)
            return
        if records:
            self._outage.end()
        for record in records:
            try:
                merge.push(record.partition, parse_record(self._spec, record.offset, record.value, record.headers))
            except UnusableSample as error:
                self._set_aside(record, error)
                epoch.note_unusable()
                merge.push(record.partition, UnusableRecord(record.offset))

    def _set_aside(self, record: RawSample, error: UnusableSample) -> None:
        now = time.monotonic()
        if now >= self._next_complaint:
            # A producer gone mad would fill the disk with log lines; the dead-letter topic has them all.
            self._next_complaint = now + _COMPLAINT_INTERVAL_S
            _log.warning("%s[%d] offset %d set aside (%s): %s", self._topic, record.partition, record.offset, error.reason, error)
        self._unusable.add(1, {"reason": error.reason})
        self._dead_letters.send(
            dead_letter(
                topic=self._topic,
                partition=record.partition,
                offset=record.offset,
                reason=error.reason,
                detail=str(error),
                key=record.key,
                value=record.value,
                headers=record.headers,
            )
        )
