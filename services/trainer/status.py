"""What the ranker worker tells others: its status at one moment, and what a command has done. All immutable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.trainer.checkpoints import Counters, Version
from services.trainer.epoch import Epoch
from services.trainer.plan import PassedOver
from services.trainer.prequential import TaskQuality


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the control API shows.

    Attributes:
        source_offsets: per partition of samples.v1, the offset behind the last sample that was learned.
        passed_over: what lies before `source_offsets` and was not learned: a rollback left it out.
        watermark_ms: every sample up to this event time is learned; Unix milliseconds.
        publishing_refused: why the publish gate refuses what was learned; empty when it does not.
        table_rows: rows by table.
        last_checkpoint: URL of the newest checkpoint that this process wrote; empty before the first.
        prequential: quality of the scores made before learning, by task.
    """

    lineage_id: str
    base_id: str
    epoch: int
    seq: int
    source_offsets: tuple[int, ...]
    passed_over: tuple[PassedOver, ...]
    watermark_ms: int
    counters: Counters
    paused: bool
    publishing_refused: str
    table_rows: Mapping[str, int]
    last_checkpoint: str
    prequential: Mapping[str, TaskQuality] = field(default_factory=dict)

    @classmethod
    def of(cls, epoch: Epoch, *, paused: bool, last_checkpoint: str, prequential: Mapping[str, TaskQuality]) -> Status:
        """Return the status of a running epoch."""
        position = epoch.merge.position
        return cls(
            lineage_id=epoch.lineage_id,
            base_id=epoch.publisher.base_id,
            epoch=epoch.number,
            seq=epoch.publisher.seq,
            source_offsets=tuple(position.offsets),
            passed_over=epoch.passed_over,
            watermark_ms=position.watermark_ms,
            counters=epoch.counters,
            paused=paused,
            publishing_refused=epoch.publisher.refusal,
            table_rows={name: len(table) for name, table in epoch.learner.tables.items()},
            last_checkpoint=last_checkpoint,
            prequential=prequential,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A durable checkpoint."""

    url: str
    state_hash: str
    source_offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restoration:
    """A restore that has been done: which checkpoint, the version of its weights, and where the new epoch goes on."""

    url: str
    version: Version
    created_at_ms: int
    epoch: int
    source_offsets: tuple[int, ...]
    skipped: tuple[int, ...]
