"""A broker in memory for the updater, a trainer that publishes to it, and an updater in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from tunemesh.events.v1 import delta_pb2
from tunemesh.events.v1.delta_pb2 import BasePointer, Delta, DeltaHeader

from services.common.platform.errors import Unavailable
from services.common.platform.telemetry import disabled
from services.common.ranker.delta import DeltaBody, TableDelta, encode_body
from services.common.ranker.delta_chunks import chunk
from services.common.ranker.tables.checks import TableDamaged
from services.common.ranker.tables.control_block import Applied
from services.common.ranker.tables.reader import ModelReader, TableNotReady
from services.common.ranker.tables.writer import ModelWriter, TableImage
from services.recommender.updater.core import Follower, HistoryLost, Identity, Standing
from services.recommender.updater.worker import Base, DeltaRecord, Timing, Updater
from tests.limits import seconds

DIM = 2
NOTHING = np.empty(0, np.int64)


class FakeBroker:
    """What a broker and an artifact store hold; `connect` meets worker.Feed, `load_base` its base loader."""

    def __init__(self) -> None:
        self.lineage = "l1"
        self.first_offset = 0
        self.log: list[Delta | None] = []
        self.pointers: list[BasePointer] = []
        self.bases: dict[str, Base | Exception] = {}
        self.reports: list[Standing] = []
        self.is_down = False
        self.says_shorter = False
        self.num_connections = 0

    def connect(self) -> FakeFeed:
        if self.is_down:
            raise Unavailable("no broker")
        self.num_connections += 1
        return FakeFeed(self)

    def load_base(self, pointer: BasePointer) -> Base:
        base = self.bases[pointer.base_id]
        if isinstance(base, Exception):
            raise base
        return base


class FakeFeed:
    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self._offset = 0
        self._num_bases = 0

    def lineage_id(self) -> str:
        return self._broker.lineage

    def new_bases(self) -> list[BasePointer]:
        self._answer()
        fresh = self._broker.pointers[self._num_bases :]
        self._num_bases += len(fresh)
        return fresh

    def seek(self, offset: int) -> None:
        self._offset = offset

    def deltas(self, timeout_ms: int) -> list[DeltaRecord]:
        self._answer()
        broker = self._broker
        end = broker.first_offset + len(broker.log)
        if not broker.first_offset <= self._offset <= end:
            raise HistoryLost(f"offset {self._offset} is out of range")
        records = [DeltaRecord(offset, broker.log[offset - broker.first_offset], "") for offset in range(self._offset, end)]
        self._offset = end
        if not records:
            time.sleep(timeout_ms / 1e3)
        return records

    def seems_shorter(self) -> bool:
        return self._broker.says_shorter or self._broker.first_offset + len(self._broker.log) < self._offset

    def report(self, standing: Standing) -> None:
        self._broker.reports.append(standing)

    def close(self) -> None:
        pass

    def _answer(self) -> None:
        if self._broker.is_down:
            raise Unavailable("the broker went down")


class FakeTrainer:
    """Publishes bases and deltas as the trainer does; `rows` is what it has learned."""

    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.epoch, self.seq, self.base_id = 1, -1, ""
        self.rows: dict[int, float] = {}

    def publish_base(self, base_id: str, *, error: Exception | None = None) -> None:
        broker = self.broker
        end = broker.first_offset + len(broker.log)
        ids = np.array(sorted(self.rows), np.int64)
        rows = np.array([[self.rows[id_]] * DIM for id_ in ids.tolist()], np.float32).reshape(ids.size, DIM)
        applied = Applied(epoch=self.epoch, seq=self.seq, watermark_ms=1000 + self.seq, base_id=base_id, delta_offset=end)
        weights = {"w": np.zeros(3, np.float32)}
        broker.bases[base_id] = error or Base({"user": TableImage(ids, rows, np.zeros(DIM, np.float32))}, weights, applied)
        fields = {"model": "ranker", "schema_hash": "s", "lineage_id": broker.lineage, "delta_offsets": [end]}
        broker.pointers.append(BasePointer(base_id=base_id, epoch=self.epoch, seq=self.seq, **fields))
        self.base_id = base_id

    def delta(self, changed: dict[int, float] | None = None, gone=(), **fields) -> list[Delta]:
        """Return the next delta's records without appending them."""
        changed = changed or {}
        self.rows = {id_: value for id_, value in (self.rows | changed).items() if id_ not in gone}
        ids = np.array(sorted(changed), np.int64)
        rows = np.array([[changed[id_]] * DIM for id_ in ids.tolist()], np.float32).reshape(ids.size, DIM)
        body = DeltaBody({"user": TableDelta(ids, rows, np.array(sorted(gone), np.int64))}, {"w": np.full(3, self.seq + 1, np.float32)})
        self.seq += 1
        values = {
            "model": "ranker",
            "schema_hash": "s",
            "lineage_id": self.broker.lineage,
            "epoch": self.epoch,
            "seq": self.seq,
            "prev_seq": self.seq - 1,
            "base_id": self.base_id,
            "watermark_ms": 1000 + self.seq,
            "dtype": delta_pb2.ROW_DTYPE_FP32,
        }
        return chunk(DeltaHeader(**values | fields), encode_body(body, delta_pb2.ROW_DTYPE_FP32), max_bytes=30)

    def publish(self, changed: dict[int, float] | None = None, gone=(), **fields) -> list[Delta]:
        records = self.delta(changed, gone, **fields)
        self.broker.log.extend(records)
        return records

    def claim_next_epoch(self) -> None:
        self.epoch, self.seq = self.epoch + 1, -1


class Running:
    """An updater in a thread."""

    def __init__(self, broker: FakeBroker, directory) -> None:
        self.broker, self.directory = broker, directory
        self.ready = threading.Event()
        self._stop = threading.Event()
        self.writer = ModelWriter(directory, "s")
        self.updater = Updater(
            Follower(Identity(model="ranker", schema_hash="s")),
            self.writer,
            broker.connect,
            broker.load_base,
            timing=Timing(poll_s=0.002, report_s=0.01, retry_s=0.01, check_s=0.05),
            telemetry=disabled(),
            on_ready=self.ready.set,
        )
        self._thread = threading.Thread(target=self.updater.run, args=(self._stop,))
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive()
        self.writer.close()

    def eventually(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds(20)
        while not condition():
            assert time.monotonic() < deadline, "it did not come to that in 20 s"
            time.sleep(0.005)

    def has(self, trainer: FakeTrainer) -> bool:
        """Whether a reader sees just what the trainer has learned."""
        try:
            reader = ModelReader(self.directory, "s")
        except (TableNotReady, TableDamaged):
            return False
        ids, rows = reader.iter_rows("user")
        at = reader.status()
        return (at.epoch, at.seq) == (trainer.epoch, trainer.seq) and dict(
            zip(ids.tolist(), rows[:, 0].tolist(), strict=True)
        ) == trainer.rows


def reported(broker: FakeBroker) -> Applied:
    """What the newest report says is applied."""
    applied = broker.reports[-1].applied if broker.reports else None
    return applied or Applied(epoch=0, seq=-1, watermark_ms=0, base_id="")
