"""A record to produce, and what a producer says of those that are not in the log. Imports in both environments: knows no client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.common.platform.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Record:
    """One record to produce; without a `partition` the key chooses one (murmur2), or the client where there is no key."""

    topic: str
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    partition: int | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that will never be in its topic, and what the broker said of it, or the client in its place."""

    record: Record
    cause: str


class NotAcknowledged(Unavailable):
    """The broker did not acknowledge these records.

    Attributes:
        records: those without an acknowledgement in time, in the order in which they were given. They may have been written all the same:
            repeat what is harmless to repeat.
        refused: those that it will never take, each tried alone; none of them is among `records`.
    """

    def __init__(self, message: str, records: Sequence[Record], *, refused: Sequence[Refusal] = ()) -> None:
        super().__init__(message)
        self.records = list(records)
        self.refused = list(refused)
