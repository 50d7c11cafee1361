"""Collaborators of the trainer as real classes without sockets, clocks or torch: logs that can crash at any write, a learner whose
result depends on order and repetition, and a follower that does what a replica does."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tunemesh.events.v1.control_pb2 import ControlRecord
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter
from tunemesh.events.v1.delta_pb2 import ROW_DTYPE_FP32, BasePointer, Delta
from tunemesh.samples.v1.sample_pb2 import Sample, SampleGroup, SampleRecord, TaskLabel, Tick

from services.common.platform.artifacts import Artifact, Manifest
from services.common.platform.ids import entity_key, sample_id
from services.common.ranker import exposure_block
from services.common.ranker.delta import DeltaBody, Reassembler
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Features
from services.trainer.epoch import Epoch, EpochConfig
from services.trainer.epoch_start import open_epoch
from services.trainer.neighbours import HistoryLost, Logs, Stores
from services.trainer.owner import ControlOwner
from services.trainer.prequential import TaskQuality
from services.trainer.publish_gate import PublishGateLimits
from services.trainer.stores import BaseStore, Checkpoint, CheckpointStore, Dated, Retention, nothing_so_old
from services.trainer.trainer_table import Eviction, TrainerTable

SPEC = FeatureSpec.load(Path(__file__).parents[1] / "model_repo" / "ranker" / "feature_spec.yaml")


class Crash(BaseException):
    """The process dies here."""


@dataclass
class Faults:
    """Dies at the n-th operation that changes something outside the process: before it took effect, or right after."""

    countdown: int = -1
    after: bool = False
    num_operations: int = 0

    def around(self, operation: Callable[[], Any]) -> Any:
        self.num_operations += 1
        self.countdown -= 1
        if self.countdown == 0 and not self.after:
            raise Crash
        result = operation()
        if self.countdown == 0:
            raise Crash
        return result


@dataclass(frozen=True)
class FakeRecord:
    partition: int
    offset: int
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()


@dataclass
class FakeDisk:
    """What survives a trainer beside the broker: checkpoints and bases, whole or not there."""

    checkpoints: dict[str, tuple[Checkpoint, int]] = field(default_factory=dict)
    bases: dict[str, tuple[Checkpoint, int, int]] = field(default_factory=dict)


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

    def read(self) -> list[tuple[int, ControlRecord]]:
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


class FakeCheckpoints(CheckpointStore):
    def __init__(self, disk: FakeDisk, faults: Faults) -> None:
        retention = Retention(keep=3, history_interval_ms=1, history_keep=0)
        super().__init__("disk", model=SPEC.model, schema_hash=SPEC.schema_hash, retention=retention)
        self.disk, self.faults = disk, faults

    def newest(self) -> Checkpoint | None:
        name = max(self.disk.checkpoints, default=None)
        return self.disk.checkpoints[name][0] if name is not None else None

    def at_or_before(self, time_ms: int, *, lineage_id: str) -> Dated:
        mine = {
            name: (checkpoint, created)
            for name, (checkpoint, created) in self.disk.checkpoints.items()
            if checkpoint.cut.lineage_id == lineage_id
        }
        old = [name for name, (_, created) in mine.items() if created <= time_ms]
        if not old:
            raise nothing_so_old(time_ms, [created for _, created in mine.values()])
        return Dated(mine[max(old)][0], max(old), mine[max(old)][1])

    def write(self, checkpoint: Checkpoint, *, now_ms: int) -> str:
        name = checkpoint.cut.name
        assert name not in self.disk.checkpoints
        self.faults.around(lambda: self.disk.checkpoints.update({name: (checkpoint, now_ms)}))
        return name


class FakeBases(BaseStore):
    def __init__(self, disk: FakeDisk, faults: Faults, keep: int = 3) -> None:
        super().__init__("disk", model=SPEC.model, schema_hash=SPEC.schema_hash, keep=keep)
        self.disk, self.faults, self.keep = disk, faults, keep

    def write(self, checkpoint: Checkpoint, *, epoch: int, seq: int, now_ms: int) -> Artifact:
        name = checkpoint.cut.base_id
        assert name not in self.disk.bases
        self.faults.around(lambda: self.disk.bases.update({name: (checkpoint, epoch, seq)}))
        manifest = Manifest(kind="base", model=SPEC.model, schema_hash=SPEC.schema_hash, lineage_id="", epoch=epoch, seq=seq)
        return Artifact(url=name, manifest=manifest, manifest_crc32c=0)

    def prune(self) -> None:
        for name in sorted(self.disk.bases)[: -self.keep]:
            del self.disk.bases[name]


@dataclass(frozen=True)
class FakeStep:
    num_samples: int
    gradient_norm: float


class FakeLearner:
    """Rows and one dense tensor that depend on every sample, its place in the order, and how often it was learned."""

    def __init__(self, steps_to_live: int | None = 15, evict_every: int = 4) -> None:
        eviction = Eviction(steps_to_live=steps_to_live)
        self.tables = {name: TrainerTable(name, dim, eviction=eviction, seed=3) for name, dim in SPEC.table_dims.items()}
        self.dense = np.zeros(4, np.float32)
        self.steps = 0
        self.evict_every = evict_every

    def step(self, groups: Sequence[SampleGroup]) -> FakeStep:
        self.steps += 1
        for table in self.tables.values():
            table.advance(self.steps)
        for group in groups:
            for sample in group.samples:
                value = np.float32(sum(label.value for label in sample.labels) + (-2.0 if sample.retracts_negative else 1.0))
                self._update("user", entity_key(group.user_id), value)
                self._update("item", entity_key(sample.item_id), value)
                self.dense[sample.sample_id % 4] = np.tanh(self.dense[sample.sample_id % 4] * np.float32(0.9) + value / len(groups))
        if self.steps % self.evict_every == 0:
            for table in self.tables.values():
                table.evict(self.steps)
        return FakeStep(sum(len(group.samples) for group in groups), gradient_norm=float(len(groups)))

    def _update(self, name: str, key: int, value: np.float32) -> None:
        table, ids = self.tables[name], np.array([key], np.int64)
        table.count(ids)
        slots = table.slots_for_update(ids)
        table.accumulators[slots] += value * value
        table.rows[slots] = np.tanh(table.rows[slots] * np.float32(0.8) + value / np.sqrt(1 + table.accumulators[slots][:, 0]))
        table.mark_touched(ids)

    def dense_state(self) -> dict[str, NDArray[np.float32]]:
        return {"w": self.dense.copy()}

    def prequential(self) -> Mapping[str, TaskQuality]:
        return {"like": TaskQuality(num_samples=10, auc=0.75, log_loss=0.5, calibration=1.0)}

    def state_arrays(self) -> dict[str, NDArray[Any]]:
        state = {"dense/w": self.dense.copy(), "learner/steps": np.array([self.steps])}
        for table in self.tables.values():
            state |= table.state_arrays()
        return state

    def load_state_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.dense, self.steps = arrays["dense/w"].copy(), int(arrays["learner/steps"][0])
        for table in self.tables.values():
            table.load_state_arrays(arrays)

    def state_hash(self) -> str:
        return "/".join([*(table.content_hash() for table in self.tables.values()), self.dense.tobytes().hex(), str(self.steps)])


@dataclass
class Follower:
    """A replica: applies bases and deltas in the order in which they were written, by the rules of epochs and sequence numbers."""

    read_base: Callable[[BasePointer], Mapping[str, NDArray[Any]]]
    epoch: int = 0
    seq: int = -1
    base_id: str = ""
    rows: dict[str, dict[int, NDArray[np.float32]]] = field(default_factory=dict)
    dense: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    watermark_ms: int = 0
    _reassembler: Reassembler = field(default_factory=Reassembler)

    def see_base(self, pointer: BasePointer) -> None:
        if pointer.epoch > self.epoch:
            self.load(pointer)
        elif pointer.epoch == self.epoch:
            assert pointer.seq <= self.seq
            self.base_id = pointer.base_id

    def load(self, pointer: BasePointer) -> None:
        arrays = self.read_base(pointer)
        self.epoch, self.seq, self.base_id = pointer.epoch, pointer.seq, pointer.base_id
        for name in SPEC.table_dims:
            ids, rows = arrays[f"table/{name}/ids"], arrays[f"table/{name}/rows"]
            self.rows[name] = dict(zip(ids.tolist(), rows, strict=True))
        self.dense = {name.removeprefix("dense/"): array for name, array in arrays.items() if name.startswith("dense/")}

    def see_delta(self, record: Delta) -> None:
        complete = self._reassembler.add(record)
        if complete is None:
            return
        header = complete.header
        if header.epoch < self.epoch or (header.epoch == self.epoch and header.seq <= self.seq):
            return
        if header.epoch > self.epoch:
            assert header.base_id == self.base_id, f"epoch {header.epoch} continues {header.base_id}, this replica has {self.base_id}"
            assert header.prev_seq == -1
        else:
            assert header.prev_seq == self.seq, f"gap: {header.epoch}.{header.seq} follows {header.prev_seq}, this replica has {self.seq}"
        self.epoch, self.seq, self.watermark_ms = header.epoch, header.seq, header.watermark_ms
        self.apply(complete.decode())

    def apply(self, body: DeltaBody) -> None:
        for name, table in body.tables.items():
            mine = self.rows.setdefault(name, {})
            mine.update(zip(table.ids.tolist(), table.rows, strict=True))
            for id_ in table.tombstones.tolist():
                mine.pop(id_, None)
        if body.dense is not None:
            self.dense = dict(body.dense)

    def equals(self, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Return whether rows and dense weights are those of a learner's state, bit for bit."""
        for name in SPEC.table_dims:
            ids, mine = arrays[f"table/{name}/ids"].tolist(), self.rows.get(name, {})
            if sorted(mine) != ids or not all((mine[id_] == row).all() for id_, row in zip(ids, arrays[f"table/{name}/rows"], strict=True)):
                return False
        dense = {name.removeprefix("dense/"): array for name, array in arrays.items() if name.startswith("dense/")}
        return dense.keys() == self.dense.keys() and all((array == self.dense[name]).all() for name, array in dense.items())


def bootstrapped_now(broker: FakeBroker) -> Follower:
    """A replica that starts after everything was written."""
    follower = Follower(broker.read_base)
    follower.load(broker.bases[-1])
    for record in broker.deltas[broker.bases[-1].delta_offsets[0] :]:
        follower.see_delta(record)
    return follower


def block(user_id: str, num_items: int, seed: int = 0) -> bytes:
    source = np.random.default_rng(seed)
    features = Features(
        user_key=entity_key(user_id),
        history_keys_L=source.integers(0, 50, 3),
        history_values_L=source.random(3).astype(np.float16),
        user_U=source.random(len(SPEC.user_columns)).astype(np.float16),
        items_NF=source.random((num_items, len(SPEC.item_columns))).astype(np.float16),
    )
    return exposure_block.encode(features, SPEC.schema_hash)


def group(request: int, user_id: str, item_ids: Sequence[str], *, positive: bool, seed: int = 0) -> SampleGroup:
    labels = [TaskLabel(task="interact", value=float(positive))] + ([TaskLabel(task="like", value=float(request % 2))] if positive else [])
    revision = 1 if positive else 0
    samples = [
        Sample(
            sample_id=sample_id(f"r{request}", item_id, revision),
            item_id=item_id,
            revision=revision,
            labels=labels,
            keep_rate=1.0 if positive else SPEC.negatives.keep_rate,
            accepted_at_ms=1_000 if positive else 0,
        )
        for item_id in item_ids
    ]
    return SampleGroup(
        request_id=f"r{request}",
        user_id=user_id,
        schema_hash=SPEC.schema_hash,
        features_block=block(user_id, len(item_ids), seed),
        samples=samples,
    )


def sample_log(seed: int, *, num_partitions: int = 2, num_ticks: int = 16, groups_per_tick: int = 4) -> list[list[SampleRecord]]:
    """Positives, negatives, ticks, and now and then a crashed joiner that repeats its last records."""
    source = random.Random(seed)
    logs: list[list[SampleRecord]] = [[] for _ in range(num_partitions)]
    request = 0
    for tick in range(100, 100 + num_ticks):
        for partition, log in enumerate(logs):
            for _ in range(source.randrange(2 * groups_per_tick)):
                request += 1
                # Users and items come and go, so that rows are evicted and created again.
                user, first = f"u{tick // 6}-{partition}-{source.randrange(4)}", tick // 3 * 3
                log.append(SampleRecord(group=group(request, user, [str(first)], positive=True, seed=request)))
                others = [str(first + k) for k in range(1, source.randrange(2, 6))]
                log.append(SampleRecord(group=group(request, user, others, positive=False, seed=request)))
            if source.random() < 0.15:
                log.extend(record for record in log[-6:] if record.WhichOneof("record") == "group")
            log.append(SampleRecord(tick=Tick(tick=tick, watermark_ms=1_000 * tick)))
    return logs


def broker_with(logs: Sequence[Sequence[SampleRecord]], disk: FakeDisk | None = None) -> FakeBroker:
    return FakeBroker(
        disk=disk or FakeDisk(),
        samples=[
            [FakeRecord(partition, offset, record.SerializeToString()) for offset, record in enumerate(log)]
            for partition, log in enumerate(logs)
        ],
    )


@dataclass
class Life:
    """One process: everything that a crash takes with it."""

    open: Callable[[], Epoch]
    samples: FakeSamples
    epoch: Epoch
    num_epochs: int = 0

    @property
    def learner(self) -> FakeLearner:
        assert isinstance(self.epoch.learner, FakeLearner)
        return self.epoch.learner

    def begin_epoch(self) -> Epoch:
        """What the worker is given: the epoch that there is, then, at each restore, another one."""
        self.num_epochs += 1
        if self.num_epochs > 1:
            self.epoch = self.open()
        return self.epoch


def start(
    broker: FakeBroker,
    *,
    faults: Faults | None = None,
    source: random.Random | None = None,
    config: Mapping[str, Any] | None = None,
    initial: Mapping[str, NDArray[Any]] | None = None,
    dedup_window_samples: int = 500,
    now_ms: Callable[[], int] = lambda: 7,
) -> Life:
    faults = faults or Faults()
    samples = FakeSamples(broker, source)
    fields: dict[str, Any] = {
        "model": SPEC.model,
        "schema_hash": SPEC.schema_hash,
        "batch_groups": 3,
        "dedup_window_samples": dedup_window_samples,
        "dtype": ROW_DTYPE_FP32,
        "limits": PublishGateLimits(max_row_norm=1e6, max_dense_norm=1e6),
        "on_lineage_change": "refuse",
        "on_lineage_change_variable": "TUNEMESH_TRAINER_ON_LINEAGE_CHANGE",
        "actor": "test",
        **(config or {}),
    }
    owner = ControlOwner(FakeControlLog(broker, faults), actor="test", now_ms=lambda: 7)

    def opened() -> Epoch:
        return open_epoch(
            FakeLearner,
            Logs(samples=samples, deltas=FakeDeltaLog(broker, faults, source), bases=FakeBaseLog(broker, faults), owner=owner),
            Stores(checkpoints=FakeCheckpoints(broker.disk, faults), bases=FakeBases(broker.disk, faults)),
            EpochConfig(**fields),
            now_ms=now_ms,
            new_lineage_id=f"lineage-{uuid.uuid4().hex[:6]}",
            initial_arrays=lambda: initial,
        )

    return Life(opened, samples, opened())
