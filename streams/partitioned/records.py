"""Records as plain values: what was read, what is set aside, what belongs elsewhere, what is to be written. Knows neither Protobuf nor
Kafka's client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Record(NamedTuple):
    """One Kafka record as it was read; kept whole for dead letters and forwards."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that cannot be used, with its reason (services.common.events.dead_letter_reasons).

    Attributes:
        record: as it was read.
        reason: why it is set aside.
        detail: for people: what was wrong.
        feedback_id: when the record is readable feedback.
        without_content: its value holds personal data and must not be repeated anywhere.
    """

    record: Record
    reason: str
    detail: str
    feedback_id: str = ""
    without_content: bool = False


@dataclass(frozen=True, slots=True)
class Forward:
    """A record whose key put it on the wrong partition; it belongs on `partition` of the same topic."""

    record: Record
    partition: int


class Outgoing(NamedTuple):
    """One record to write; without a `partition` its key chooses one."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    partition: int | None = None
