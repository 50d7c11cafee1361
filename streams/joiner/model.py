"""What the joiner reads and what it emits, as plain values. Knows neither Protobuf nor Kafka's client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from services.common.ranker.labels import Label


class Record(NamedTuple):
    """One Kafka record as it was read; kept whole for dead letters and forwards."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """What was shown for one request. `features_block` is empty when the features were unavailable."""

    request_id: str
    user_id: str
    exposed_at_ms: int
    item_ids: tuple[str, ...]
    features_block: bytes
    schema_hash: str
    propensities: tuple[float, ...] = ()
    model_version: str = ""
    variant: str = ""
    idempotency_key: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What a user did about one item of a request, or about an answer (then `item_id` is empty, and the join leaves it alone)."""

    feedback_id: str
    request_id: str
    user_id: str
    item_id: str
    kind: str
    value: float
    accepted_at_ms: int
    traceparent: str = ""


class Sample(NamedTuple):
    """One labelled item. `row` is its place in the exposure; `feedback` is None for a negative."""

    sample_id: int
    row: int
    revision: int
    labels: tuple[Label, ...]
    keep_rate: float
    retracts_negative: bool
    feedback: Feedback | None


@dataclass(frozen=True, slots=True)
class SampleGroup:
    """Samples of one exposure that became known together."""

    exposure: Exposure
    samples: tuple[Sample, ...]
    traceparent: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that cannot be used, with its reason (services.common.events.dead_letters)."""

    record: Record
    reason: str
    detail: str
    feedback_id: str = ""


@dataclass(frozen=True, slots=True)
class Forward:
    """A record whose key put it on the wrong partition; it belongs on `partition` of the same topic."""

    record: Record
    partition: int


Emission = SampleGroup | DeadLetter | Forward


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a partition is taken up: the committed offsets and the last tick that is in the samples log."""

    exposures_start: int = 0
    feedback_start: int = 0
    feedback_position: int = 0
    watermark_ms: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """One tick: what it says, and what may be committed once everything emitted up to it is acknowledged.

    Attributes:
        tick: wall clock divided by the tick interval.
        watermark_ms: every feedback accepted up to here has been joined or set aside.
        feedback_position: every feedback record below this offset has been joined or set aside.
        exposures_committable: exposures below this offset are never needed again.
        feedback_committable: feedback below this offset is never needed again.
    """

    tick: int
    watermark_ms: int
    feedback_position: int
    exposures_committable: int
    feedback_committable: int


@dataclass(frozen=True, slots=True)
class TickOutcome:
    """What a tick brought about, in the order in which it must be written: the emissions, then the cut."""

    cut: Cut
    emissions: list[Emission] = field(default_factory=list)
