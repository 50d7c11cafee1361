"""The trainer's ends of the broker's logs, which can crash at any write."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tunemesh.events.v1.control_pb2 import ControlRecord
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter
from tunemesh.events.v1.delta_pb2 import BasePointer, Delta, ReplicaStatus

from services.common.platform.errors import Unavailable
from services.trainer.neighbours import HistoryLost
from tests.trainer_fakes.broker import FakeBroker, FakeRecord
from tests.trainer_fakes.faults import Faults


class FakeSamples:
    def __init__(self, broker: FakeBroker, source: random.Random | None = None) -> None:
        self.broker, self.source = broker, source or random.Random(0)
        self.positions = [0 for _ in broker.samples]
        self.held: set[int] = set()

    def ranges(self) -> list[tuple[int, int]]:
        return [(log[0].offset if log else 0, log[-1].offset + 1 if log else 0) for log in self.broker.samples]

    def seek(self, offsets: Sequence[int]) -> None:
        self.positions = list(offsets)

    def hold(self, partitions: Sequence[int]) -> None:
        self.held = set(partitions)

    def read_to(self) -> list[int]:
        return list(self.positions)

    def poll(self, timeout_ms: int) -> list[FakeRecord]:
        polled = []
        for partition, log in enumerate(self.broker.samples):
            if partition not in self.held:
                ready = [record for record in log if record.offset >= self.positions[partition]][: self.source.randrange(0, 12)]
                polled += ready
                self.positions[partition] = ready[-1].offset + 1 if ready else self.positions[partition]
        return polled


class FakeControlLog:
    def __init__(self, broker: FakeBroker, faults: Faults) -> None:
        self.broker, self.faults, self.position = broker, faults, 0

    def read(self, timeout_ms: int) -> list[tuple[int, ControlRecord]]:
        if timeout_ms < self.faults.broker_takes_ms:
            raise Unavailable(f"the broker has not answered within {timeout_ms} ms")
        if len(self.broker.control) < self.position:
            raise HistoryLost("control.v1 is shorter than it was")
        new = list(enumerate(self.broker.control))[self.position :]
        self.position = len(self.broker.control)
        return new

    def append(self, record: ControlRecord) -> int:
        copy = ControlRecord.FromString(record.SerializeToString())
        self.faults.around(lambda: self.broker.control.append(copy))
        return len(self.broker.control) - 1


@dataclass
class Acknowledgement:
    """Comes when it has been asked for often enough."""

    offset: int
    num_polls: int

    def next_offset(self) -> int | None:
        self.num_polls -= 1
        return None if self.num_polls >= 0 else self.offset

    def wait(self, timeout_ms: int) -> None:
        self.num_polls = 0


class FakeDeltaLog:
    def __init__(self, broker: FakeBroker, faults: Faults, source: random.Random | None = None) -> None:
        self.broker, self.faults, self.source = broker, faults, source or random.Random(0)

    def range(self) -> tuple[int, int]:
        return self.broker.first_delta_offset, len(self.broker.deltas)

    def read(self, first: int, end: int) -> list[Delta]:
        if first < self.broker.first_delta_offset:
            raise HistoryLost("ranker.deltas.v1 begins later")
        return self.broker.deltas[first:end]

    def append(self, chunks: Sequence[Delta], traceparent: str) -> Acknowledgement:
        for part in chunks:
            self.faults.around(lambda part=part: self._write(Delta.FromString(part.SerializeToString())))
        return Acknowledgement(len(self.broker.deltas), self.source.choice([0, 0, 1, 5]))

    def _write(self, part: Delta) -> None:
        self.broker.deltas.append(part)
        self.broker.replica.see_delta(part)


class FakeBaseLog:
    def __init__(self, broker: FakeBroker, faults: Faults) -> None:
        self.broker, self.faults = broker, faults

    def newest(self, model: str) -> BasePointer | None:
        return self.broker.bases[-1] if self.broker.bases else None

    def append(self, pointer: BasePointer) -> None:
        self.faults.around(lambda: self._write(BasePointer.FromString(pointer.SerializeToString())))

    def _write(self, pointer: BasePointer) -> None:
        self.broker.bases.append(pointer)
        self.broker.replica.see_base(pointer)


class FakeDeadLetters:
    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker

    def send(self, letter: DeadLetter) -> None:
        self.broker.dead_letters.append(letter)

    def flush(self) -> None:
        pass


class FakeReports:
    """replicas.v1 as the trainer hears it."""

    def __init__(self) -> None:
        self.untaken: list[ReplicaStatus] = []

    def take(self) -> list[ReplicaStatus]:
        taken, self.untaken = self.untaken, []
        return taken
