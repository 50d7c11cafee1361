"""The joiner's part in the work on one partition: how its records are read, how its samples and ticks are written."""

from __future__ import annotations

from functools import partial

from opentelemetry.trace import SpanKind

from services.common.events import envelope
from services.common.events.topics import EXPOSURES, FEEDBACK, SAMPLES
from services.common.platform.telemetry import Telemetry
from services.common.platform.traceparent import current_traceparent
from streams.joiner import codec
from streams.joiner.core import JoinerPartition
from streams.joiner.model import Cut, SampleGroup
from streams.partitioned.records import Outgoing
from streams.partitioned.runtime import Input, Partition

_SOURCE = "/tunemesh/joiner"


def join_of(
    number: int, core: JoinerPartition, schema_hash: str, telemetry: Telemetry, exposures_log: int = 0
) -> Partition[SampleGroup, Cut]:
    """Return the join of a partition.

    Args:
        number: of the partition.
        core: joins it.
        schema_hash: of this process's feature spec.
        telemetry: of this process.
        exposures_log: names the incarnation of exposures.v1 in the ticks; 0: not known.
    """
    writer = _SampleWriter(number, telemetry, exposures_log)
    return Partition(
        intake=core.intake,
        subjects=Input(EXPOSURES, partial(codec.read_exposure, schema_hash=schema_hash), core.on_exposure),
        feedback=Input(FEEDBACK, codec.read_feedback, core.on_feedback),
        tick=core.on_tick,
        committable=lambda cut: (cut.exposures_committable, cut.feedback_committable),
        outgoing=writer.group_record,
        mark=writer.tick_record,
        wants_tick=core.freshness.wants_tick,
    )


class _SampleWriter:
    """Makes the records of one partition: samples stand in the partition of their exposure."""

    def __init__(self, partition: int, telemetry: Telemetry, exposures_log: int) -> None:
        self._partition = partition
        self._telemetry = telemetry
        self._exposures_log = exposures_log

    def group_record(self, group: SampleGroup) -> Outgoing:
        """Return the record of a group; one that feedback brought about continues the feedback's trace with a span."""
        last, traceparent = group.samples[-1], group.traceparent
        if last.feedback is not None:
            attributes = {"partition": self._partition}
            with self._telemetry.span("joiner.join", parent=traceparent, kind=SpanKind.CONSUMER, attributes=attributes):
                traceparent = current_traceparent()
        headers = envelope.headers_for(SAMPLES.value, _SOURCE, event_id=f"{last.sample_id:016x}", traceparent=traceparent)
        return Outgoing(SAMPLES.name, group.exposure.user_id.encode(), codec.write_group(group), headers, self._partition)

    def tick_record(self, cut: Cut) -> Outgoing:
        """Return the record of a tick."""
        headers = envelope.headers_for(SAMPLES.value, _SOURCE, event_id=f"tick/{self._partition}/{cut.tick}")
        return Outgoing(SAMPLES.name, None, codec.write_tick(cut, self._exposures_log), headers, self._partition)
