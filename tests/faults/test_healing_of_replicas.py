"""A trainer and replicas, both as they run, on one log that loses and damages what is written: every replica heals by itself."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import pytest
from tunemesh.events.v1.delta_pb2 import BasePointer, Delta, ReplicaStatus
from tunemesh.samples.v1.sample_pb2 import SampleRecord, Tick

from services.common.platform.control import fold
from services.common.platform.errors import CorruptArtifact
from services.common.platform.telemetry import disabled
from services.common.ranker.tables.control_block import Applied
from services.common.ranker.tables.reader import ModelReader, TableNotReady
from services.common.ranker.tables.writer import ModelWriter, TableImage
from services.recommender.updater.core import Follower, HistoryLost, Identity, Standing
from services.recommender.updater.worker import Base, DeltaRecord, Timing, Updater
from services.trainer.base_schedule import BasePace
from services.trainer.worker import RankerWorker, WorkerConfig
from tests.limits import seconds
from tests.trainer_fakes.broker import FakeBroker, FakeRecord, broker_with
from tests.trainer_fakes.life import start
from tests.trainer_fakes.logs import FakeDeadLetters, FakeDeltaLog, FakeReports
from tests.trainer_fakes.sample_logs import SPEC, group

# The same paces as the real ones, a hundred times as fast.
PACE = BasePace(interval_s=1e9, first_gap_s=0.05, last_gap_s=6.0, grace_s=0.2, fresh_s=2.0)
WORKER = WorkerConfig(samples_topic="samples.v1", publish_interval_ms=10, publish_gap_ms=10, checkpoint_interval_ms=300, base_pace=PACE)
TIMING = Timing(poll_s=0.002, report_s=0.01, retry_s=0.01)
FAULTS = ("lost", "damaged", "unreadable", "half", "trimmed", "damaged base")


class Log:
    """ranker.deltas.v1 and the bases as replicas find them: `spoil` harms the next delta; the broker's own replica sees the truth."""

    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.found: list[Delta | str | None] = []
        self.spoil = ""
        self.first_offset = 0
        self.damaged_bases: set[str] = set()
        self.damages_next_base = False

    def write(self, part: Delta) -> None:
        self.broker.deltas.append(part)
        self.broker.replica.see_delta(part)
        spoil, self.spoil = self.spoil, ""
        if spoil == "damaged base":
            self.damages_next_base, spoil = True, "lost"
        if spoil == "trimmed":
            self.first_offset, spoil = len(self.found) + 1, "lost"
        if spoil == "half":
            part = Delta(header=part.header, chunk_index=0, chunk_count=2, body=part.body[:1])
        elif spoil == "damaged":
            part = Delta.FromString(part.SerializeToString())
            part.header.body_crc32c ^= 1
        self.found.append({"lost": "lost", "unreadable": None}.get(spoil, part))


class Feed:
    """Meets worker.Feed on a Log."""

    def __init__(self, log: Log, reports: FakeReports, name: str) -> None:
        self._log, self._reports, self._name = log, reports, name
        self._offset, self._num_bases = 0, 0

    def lineage_id(self) -> str:
        return fold(self._log.broker.control).lineage_id

    def new_bases(self) -> Sequence[BasePointer]:
        fresh = self._log.broker.bases[self._num_bases :]
        self._num_bases += len(fresh)
        if fresh and self._log.damages_next_base:
            self._log.damages_next_base = False
            self._log.damaged_bases.add(fresh[-1].base_id)
        return fresh

    def seek(self, offset: int) -> None:
        self._offset = offset

    def deltas(self, timeout_ms: int) -> Sequence[DeltaRecord]:
        if self._offset < self._log.first_offset:
            raise HistoryLost(f"the log begins at {self._log.first_offset}, not at {self._offset}")
        found = list(enumerate(self._log.found))[self._offset :]
        self._offset += len(found)
        if not found:
            time.sleep(timeout_ms / 1e3)
        return [DeltaRecord(offset, part, "") for offset, part in found if not isinstance(part, str)]

    def seems_shorter(self) -> bool:
        return False

    def report(self, standing: Standing) -> None:
        status = ReplicaStatus(replica_id=self._name, model=SPEC.model, schema_hash=SPEC.schema_hash, blocked=standing.blocked)
        status.newest_base_id = standing.newest_base_id
        self._reports.untaken.append(status)

    def close(self) -> None:
        pass

    def load_base(self, pointer: BasePointer) -> Base:
        if pointer.base_id in self._log.damaged_bases:
            raise CorruptArtifact(f"{pointer.base_id} is damaged")
        arrays = self._log.broker.read_base(pointer)
        names = list(SPEC.table_dims)
        tables = {name: TableImage(*(arrays[f"table/{name}/{part}"] for part in ("ids", "rows", "default_row"))) for name in names}
        dense = {name.removeprefix("dense/"): array for name, array in arrays.items() if name.startswith("dense/")}
        applied = Applied(
            epoch=pointer.epoch, seq=pointer.seq, watermark_ms=0, base_id=pointer.base_id, delta_offset=pointer.delta_offsets[0]
        )
        return Base(tables, dense, applied)


class Replica:
    """An updater in a thread."""

    def __init__(self, log: Log, reports: FakeReports, folder, name: str) -> None:
        self.folder = folder / name
        self._stop = threading.Event()
        self._writer = ModelWriter(self.folder, SPEC.schema_hash)
        follower = Follower(Identity(model=SPEC.model, schema_hash=SPEC.schema_hash))
        feed = Feed(log, reports, name)
        updater = Updater(
            follower,
            self._writer,
            lambda: Feed(log, reports, name),
            feed.load_base,
            timing=TIMING,
            telemetry=disabled(),
            on_ready=lambda: None,
        )
        self._thread = threading.Thread(target=updater.run, args=(self._stop,), daemon=True)
        self._thread.start()

    def content_hash(self) -> str:
        """As that of the truth, tests.trainer_fakes.replica.Follower.content_hash."""
        try:
            reader = ModelReader(self.folder, SPEC.schema_hash)
        except TableNotReady:
            return ""
        digest = hashlib.sha256()
        for name in sorted(SPEC.table_dims):
            ids, rows = reader.iter_rows(name)
            for id_, row in sorted(zip(ids.tolist(), rows, strict=True), key=lambda pair: pair[0]):
                digest.update(name.encode() + id_.to_bytes(8, "big", signed=True) + row.tobytes())
        dense = reader.dense().tensors
        for name in sorted(dense):
            digest.update(name.encode() + dense[name].tobytes())
        return digest.hexdigest()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)
        self._writer.close()


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + seconds(30)
    while not condition():
        assert time.monotonic() < deadline, f"{what}: waited 30 s in vain"
        time.sleep(0.005)


def teach(broker: FakeBroker, round_: int) -> None:
    """Let the joiner write one more segment to every partition."""
    for partition, log in enumerate(broker.samples):
        records = [SampleRecord(group=group(2 * round_ + partition, f"u{round_}", [str(round_ % 7)], positive=True, seed=round_))]
        records.append(SampleRecord(tick=Tick(tick=10 + round_, watermark_ms=1_000 * round_)))
        for record in records:
            log.append(FakeRecord(partition, len(log), record.SerializeToString()))


@pytest.mark.parametrize("num_faults", [6, pytest.param(50, marks=pytest.mark.deep)])
def test_gaps_heal_by_themselves_and_replicas_have_what_was_learned(num_faults, tmp_path, monkeypatch):
    source = random.Random(num_faults)
    broker, reports = broker_with([[], []]), FakeReports()
    log = Log(broker)
    monkeypatch.setattr(FakeDeltaLog, "_write", lambda _, part: log.write(part))
    life = start(broker)
    worker = RankerWorker(life.begin_epoch, SPEC, life.samples, FakeDeadLetters(broker), reports, WORKER, disabled())
    learning = threading.Thread(target=worker.run, daemon=True)
    learning.start()
    with ExitStack() as running:
        running.callback(learning.join, 20)
        running.callback(worker.stop)
        replicas = [Replica(log, reports, tmp_path, f"replica-{number}") for number in range(2)]
        for each in replicas:
            running.callback(each.stop)
        for round_ in range(num_faults):
            log.spoil = source.choice(FAULTS)
            teach(broker, round_)
            ends = tuple(len(samples) for samples in broker.samples)
            eventually(lambda ends=ends: worker.status.source_offsets == ends and not log.spoil, "learning")
            eventually(lambda: all(each.content_hash() == broker.replica.content_hash() for each in replicas), f"healing of fault {round_}")
        assert len(broker.replica.rows["user"]) > 3
        late = Replica(log, reports, tmp_path, "late")
        running.callback(late.stop)
        eventually(lambda: late.content_hash() == broker.replica.content_hash(), "joining late")
    assert len(broker.bases) <= 1 + 3 * num_faults
