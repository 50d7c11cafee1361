"""The curator's part in the work on one partition: how its records are read, how its examples are written."""

from __future__ import annotations

from functools import partial

from opentelemetry.trace import SpanKind

from services.common.events.envelope import headers_for
from services.common.events.topics import FEEDBACK, GENERATIONS, LLM_EXAMPLES
from services.common.platform.telemetry import Telemetry
from services.common.platform.traceparent import current_traceparent
from streams.curator.codec import read_feedback, read_generation, write_example
from streams.curator.core import CuratorPartition
from streams.curator.model import Cut, Example
from streams.partitioned.records import Outgoing
from streams.partitioned.runtime import Input, Partition


def curation_of(core: CuratorPartition, telemetry: Telemetry) -> Partition[Example, Cut]:
    """Return the curation of one partition. Nobody is told of its cuts."""
    return Partition(
        intake=core.intake,
        subjects=Input(GENERATIONS, read_generation, core.on_generation),
        feedback=Input(FEEDBACK, read_feedback, core.on_feedback),
        tick=core.on_tick,
        committable=lambda cut: (cut.generations_committable, cut.feedback_committable),
        outgoing=partial(_example_record, telemetry=telemetry),
    )


def _example_record(example: Example, telemetry: Telemetry) -> Outgoing:
    """The span continues the feedback's trace and is linked with the answer's."""
    links = [example.generation.traceparent]
    with telemetry.span("curator.curate", parent=example.feedback.traceparent, links=links, kind=SpanKind.CONSUMER):
        headers = headers_for(LLM_EXAMPLES.value, "/tunemesh/curator", event_id=example.example_id, traceparent=current_traceparent())
    return Outgoing(LLM_EXAMPLES.name, example.generation.task.encode(), write_example(example), headers)
