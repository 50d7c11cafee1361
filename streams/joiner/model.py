"""What the joiner reads and what it emits, as plain values. Knows neither Protobuf nor Kafka's client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from services.common.events.exposure import Exposure
from services.common.events.feedback import Feedback
from services.common.ranker.labels import Label
from streams.partitioned.records import DeadLetter, Forward


class Sample(NamedTuple):
    """One labelled item. `row` is its place in the exposure; `feedback` is None for a negative. `labels` are what all feedback so far says
    about the item, `replaces` what was emitted as such before."""

    sample_id: int
    row: int
    revision: int
    labels: tuple[Label, ...]
    keep_rate: float
    retracts_negative: bool
    feedback: Feedback | None
    replaces: tuple[Label, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinConfig:
    """How long the joiner waits for what.

    Attributes:
        window_ms: after its exposure an item without feedback becomes a negative.
        late_horizon_ms: for so long after the window, feedback is still joined.
        tick_gap_ms: the least time between two ticks: their numbers are multiples of it.
    """

    window_ms: int
    late_horizon_ms: int
    tick_gap_ms: int


@dataclass(frozen=True, slots=True)
class SampleGroup:
    """Samples of one exposure that became known together."""

    exposure: Exposure
    exposure_offset: int
    samples: tuple[Sample, ...]
    traceparent: str


Emission = SampleGroup | DeadLetter | Forward


@dataclass(frozen=True, slots=True)
class Resume:
    """What the last tick in the samples log says."""

    feedback_position: int = 0
    watermark_ms: int = 0
    exposures_position: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """One tick: what it says, and what may be committed once everything emitted up to it is acknowledged.

    Attributes:
        tick: its number: the wall clock, Unix milliseconds, down to the last whole gap.
        watermark_ms: every feedback accepted up to here has been joined or set aside, or its exposure was not in the log in time.
        feedback_position: every feedback record below this offset has been joined or set aside.
        exposures_committable: exposures below this offset are never needed again, and give no sample any more.
        feedback_committable: feedback below this offset is never needed again.
    """

    tick: int
    watermark_ms: int
    feedback_position: int
    exposures_committable: int
    feedback_committable: int
