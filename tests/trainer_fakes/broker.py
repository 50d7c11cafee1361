"""What survives a trainer: the broker's logs, a disk, and a replica that follows them all the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from tunemesh.events.v1.control_pb2 import ControlRecord
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter
from tunemesh.events.v1.delta_pb2 import BasePointer, Delta
from tunemesh.samples.v1.sample_pb2 import SampleRecord

from tests.trainer_fakes.replica import Follower
from tests.trainer_fakes.stores import FakeDisk


@dataclass(frozen=True)
class FakeRecord:
    partition: int
    offset: int
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()


@dataclass
class FakeBroker:
    """What survives a trainer: the logs, a disk, and a replica that follows them all the time."""

    samples: list[list[FakeRecord]]
    control: list[ControlRecord] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)
    first_delta_offset: int = 0
    bases: list[BasePointer] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    disk: FakeDisk = field(default_factory=FakeDisk)

    def __post_init__(self) -> None:
        self.replica = Follower(self.read_base)

    def read_base(self, pointer: BasePointer) -> Mapping[str, NDArray[Any]]:
        checkpoint, epoch, seq = self.disk.bases[pointer.uri]
        assert (epoch, seq, checkpoint.cut.lineage_id) == (pointer.epoch, pointer.seq, pointer.lineage_id)
        return checkpoint.arrays


def broker_with(logs: Sequence[Sequence[SampleRecord]], disk: FakeDisk | None = None) -> FakeBroker:
    return FakeBroker(
        disk=disk or FakeDisk(),
        samples=[
            [FakeRecord(partition, offset, record.SerializeToString()) for offset, record in enumerate(log)]
            for partition, log in enumerate(logs)
        ],
    )


def bootstrapped_now(broker: FakeBroker) -> Follower:
    """A replica that starts after everything was written."""
    follower = Follower(broker.read_base)
    follower.load(broker.bases[-1])
    for record in broker.deltas[broker.bases[-1].delta_offsets[0] :]:
        follower.see_delta(record)
    return follower
