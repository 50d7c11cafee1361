"""A disk that outlives the trainer, and the stores of checkpoints and bases on it, which can crash at any write."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tunemesh.events.v1.delta_pb2 import ROW_DTYPE_FP32, RowDtype

from services.common.platform.artifacts import Artifact, Manifest
from services.trainer.bases import BaseStore, as_replicas_have_them
from services.trainer.checkpoints import Checkpoint, CheckpointStore, Dated, Retention, Version, no_such_version, nothing_so_old
from tests.trainer_fakes.faults import Faults
from tests.trainer_fakes.sample_logs import SPEC


@dataclass
class FakeDisk:
    """What survives a trainer beside the broker: checkpoints and bases, whole or not there."""

    checkpoints: dict[str, tuple[Checkpoint, int]] = field(default_factory=dict)
    bases: dict[str, tuple[Checkpoint, int, int]] = field(default_factory=dict)


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

    def at_or_before_version(self, version: Version, *, lineage_id: str) -> Dated:
        held = {
            (Version(each.cut.epoch + 1, -1) if each.cut.restored else Version(each.cut.epoch, each.within_seq), name)
            for name, (each, _) in self.disk.checkpoints.items()
            if each.cut.lineage_id == lineage_id
        }
        old = [(kept, name) for kept, name in held if kept <= version]
        if not old:
            raise no_such_version(version, [kept for kept, _ in held])
        return Dated(self.disk.checkpoints[max(old)[1]][0], max(old)[1], self.disk.checkpoints[max(old)[1]][1])

    def write(self, checkpoint: Checkpoint, *, now_ms: int) -> str:
        name = checkpoint.cut.name
        assert name not in self.disk.checkpoints
        self.faults.around(lambda: self.disk.checkpoints.update({name: (checkpoint, now_ms)}))
        return name


class FakeBases(BaseStore):
    def __init__(self, disk: FakeDisk, faults: Faults, row_dtype: RowDtype = ROW_DTYPE_FP32, keep: int = 3) -> None:
        super().__init__("disk", model=SPEC.model, schema_hash=SPEC.schema_hash, row_dtype=row_dtype, keep=keep)
        self.disk, self.faults, self.row_dtype, self.keep = disk, faults, row_dtype, keep

    def write(self, checkpoint: Checkpoint, *, epoch: int, seq: int, now_ms: int) -> Artifact:
        name = checkpoint.cut.base_id
        assert name not in self.disk.bases
        held = replace(checkpoint, arrays=as_replicas_have_them(checkpoint.arrays, self.row_dtype))
        self.faults.around(lambda: self.disk.bases.update({name: (held, epoch, seq)}))
        manifest = Manifest(kind="base", model=SPEC.model, schema_hash=SPEC.schema_hash, lineage_id="", epoch=epoch, seq=seq)
        return Artifact(url=name, manifest=manifest, manifest_crc32c=0)

    def prune(self, announced: str, lineage_id: str) -> None:
        for name in sorted(self.disk.bases)[: -self.keep]:
            if name != announced:
                del self.disk.bases[name]
