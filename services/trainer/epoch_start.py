"""Opens an epoch of the ranker worker, in the order that makes each crash harmless:

    newest checkpoint + control.v1 -> plan -> [lineage] -> [checkpoint] -> epoch claim -> base, or fence and re-publication -> learn

A checkpoint exists before the first claim names it, the claim is durable before the first publish, and nothing is learned before replicas
have been told, as rows or tombstones, what an earlier epoch published after the cut.

It knows its neighbours as Protocols: neither Kafka, nor threads, nor what time it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tunemesh.events.v1.control_pb2 import ControlRecord, EpochClaim
from tunemesh.events.v1.delta_pb2 import BasePointer, Delta

from services.common.platform.control import ControlState
from services.common.platform.errors import CorruptArtifact, Unavailable
from services.common.ranker.delta_chunks import CompleteDelta, Reassembler
from services.common.ranker.tables.index import Int64s
from services.trainer.checkpoints import Checkpoint, Counters
from services.trainer.dedup import DedupWindow
from services.trainer.epoch import ACKNOWLEDGE_TIMEOUT_MS, Epoch, EpochConfig
from services.trainer.matured import MaturedLabels
from services.trainer.merge import TickMerge
from services.trainer.neighbours import HistoryLost, Learner, Logs, Stores
from services.trainer.owner import ANSWER_TIMEOUT_MS
from services.trainer.plan import Found, PassedOver, Plan, plan_start
from services.trainer.publisher import DeltaPublisher, Identity
from services.trainer.quality_gate import QualityGate

_log = logging.getLogger(__name__)


def open_epoch(
    make_learner: Callable[[], Learner],
    logs: Logs,
    stores: Stores,
    config: EpochConfig,
    *,
    now_ms: Callable[[], int],
    new_lineage_id: str,
    initial_arrays: Callable[[], Mapping[str, NDArray[Any]] | None],
) -> Epoch:
    """Begin an epoch; when this returns, replicas have what the learner has, and `learn` may begin.

    Args:
        make_learner: returns a fresh one; called when it is clear that the start is not refused, since it takes seconds to load torch.
        logs: the broker's side.
        stores: the artifacts' side.
        config: of the epoch.
        now_ms: Unix milliseconds.
        new_lineage_id: used when the broker's history has no id yet.
        initial_arrays: what a learner without a checkpoint begins with; None keeps it as it is.
    Raises:
        ConfigurationError: checkpoint, feature spec and broker do not belong together.
        Unavailable: broker or store do not answer.
    """
    checkpoint = stores.checkpoints.newest()
    logs.owner.sync(ANSWER_TIMEOUT_MS)
    newest_base = logs.bases.newest(config.model)
    plan = _plan(checkpoint, newest_base, logs, stores, config, new_lineage_id)
    _log.info("%s", plan.note)
    learner = make_learner()
    dedup, quality = DedupWindow(config.dedup_window_samples, config.dedup_max_samples), QualityGate(config.quality)
    if checkpoint is not None:
        learner.load_state_arrays(checkpoint.arrays)
        quality.load_state_arrays(checkpoint.arrays)
        dedup = DedupWindow.from_arrays(checkpoint.dedup, config.dedup_window_samples, config.dedup_max_samples)
    elif (arrays := initial_arrays()) is not None:
        learner.load_state_arrays(arrays)
    if plan.lineage_is_new:
        logs.owner.write(lambda state: _lineage_record(state, plan.lineage_id, config, now_ms()), ANSWER_TIMEOUT_MS)
    epoch = Epoch(
        learner=learner,
        logs=logs,
        stores=stores,
        config=config,
        lineage_id=plan.lineage_id,
        number=plan.epoch,
        merge=TickMerge(plan.position, batch_groups=config.batch_groups),
        dedup=dedup,
        publisher=_publisher(checkpoint, plan, logs, config),
        labels=MaturedLabels(config.tasks, config.unanswered, known_until_ms=_known_until_ms(checkpoint)),
        quality=quality,
        counters=checkpoint.counters if checkpoint is not None else Counters(),
        now_ms=now_ms,
        base_created_at_ms=newest_base.created_at_ms if newest_base is not None else 0,
        passed_over=_passed_over(checkpoint, plan),
    )
    _claim(epoch, plan, checkpoint)
    _begin(epoch, plan, checkpoint)
    logs.samples.seek(epoch.merge.position.offsets)
    return epoch


def _plan(
    checkpoint: Checkpoint | None, newest_base: BasePointer | None, logs: Logs, stores: Stores, config: EpochConfig, new_lineage_id: str
) -> Plan:
    found = Found(
        control=logs.owner.state,
        newest_base_id=newest_base.base_id if newest_base is not None else "",
        sample_ranges=logs.samples.ranges(),
        delta_range=logs.deltas.range(),
    )
    return plan_start(
        config.model,
        checkpoint.cut if checkpoint is not None else None,
        found,
        new_lineage_id=new_lineage_id,
        row_dtype=config.dtype,
        on_lineage_change=config.on_lineage_change,
        variable=config.on_lineage_change_variable,
        where=stores.checkpoints.url,
    )


def _known_until_ms(checkpoint: Checkpoint | None) -> int:
    """Return the newest watermark of what was learned."""
    return max((part.watermark_ms for part in checkpoint.cut.position.partitions), default=0) if checkpoint is not None else 0


def _passed_over(checkpoint: Checkpoint | None, plan: Plan) -> tuple[PassedOver, ...]:
    """Return what rollbacks left out before the plan's position; offsets of another history, or of a new topic, mean nothing."""
    if checkpoint is None or checkpoint.cut.lineage_id != plan.lineage_id:
        return ()
    offsets = dict(enumerate(plan.position.offsets))
    return tuple(part for part in checkpoint.cut.passed_over if part.end <= offsets.get(part.partition, 0))


def _publisher(checkpoint: Checkpoint | None, plan: Plan, logs: Logs, config: EpochConfig) -> DeltaPublisher:
    return DeltaPublisher(
        log=logs.deltas,
        identity=Identity(model=config.model, schema_hash=config.schema_hash, lineage_id=plan.lineage_id, epoch=plan.epoch),
        dtype=config.dtype,
        limits=config.limits,
        # Empty until there is a base, so that a checkpoint written before it says that one is owed.
        base_id=checkpoint.cut.base_id if checkpoint is not None and not plan.publish_base else "",
        next_offset=logs.deltas.range()[1],
        published_position=plan.position,
        continues=checkpoint.version if checkpoint is not None and not plan.publish_base else (0, 0),
    )


def _lineage_record(state: ControlState, lineage_id: str, config: EpochConfig, now_ms: int) -> ControlRecord:
    if state.lineage_id:
        raise Unavailable(f"another trainer gave the broker lineage {state.lineage_id} at the same moment: start again")
    return state.lineage_change(lineage_id, now_ms=now_ms, actor=config.actor)


def _claim(epoch: Epoch, plan: Plan, checkpoint: Checkpoint | None) -> None:
    """Claim the epoch, naming a checkpoint that exists; somebody else's claim in between makes it a higher one."""
    continues_from = checkpoint.cut.name if checkpoint is not None else ""
    restored = checkpoint.cut.restored if checkpoint is not None else None
    if plan.write_checkpoint:
        first = epoch.cut()
        epoch.stores.checkpoints.write(first, now_ms=epoch.now_ms())
        continues_from = first.cut.name
    model, config = epoch.config.model, epoch.config

    def decide(state: ControlState) -> ControlRecord:
        claim = EpochClaim(
            model=model,
            epoch=max(state.epoch(model) + 1, plan.epoch),
            continues_from=restored.checkpoint if restored is not None else continues_from,
            lineage_id=plan.lineage_id,
            source_offsets=plan.position.offsets,
            skipped=restored.skipped if restored is not None else (),
        )
        return state.epoch_change(claim, now_ms=epoch.now_ms(), actor=restored.actor if restored is not None else config.actor)

    number = epoch.logs.owner.write(decide, ANSWER_TIMEOUT_MS).epoch_claim.epoch
    epoch.number = number
    epoch.publisher.identity = replace(epoch.publisher.identity, epoch=number)
    _log.info("claimed epoch %d of %s, continuing %s", number, model, continues_from)


def _begin(epoch: Epoch, plan: Plan, checkpoint: Checkpoint | None) -> None:
    """Bring replicas to what the learner has."""
    if plan.publish_base or checkpoint is None:
        _begin_with_base(epoch)
        return
    first, end = checkpoint.cut.delta_offset, epoch.logs.deltas.range()[1]
    published = _PublishedIds()
    try:
        published.read(epoch.logs.deltas.read(first, end))
    except HistoryLost as error:
        _log.warning("what older epochs published cannot be read back, so replicas get a new base: %s", error)
        _begin_with_base(epoch)
        return
    if published.damage:
        _log.warning("what older epochs published is damaged, so replicas get a new base: %s", published.damage[0])
        _begin_with_base(epoch)
        return
    epoch.publisher.next_offset = end
    _begin_with_deltas(epoch, first, published)


def _begin_with_base(epoch: Epoch) -> None:
    """Publish the base that the epoch begins with; nothing that was to be published before matters any more."""
    epoch.publisher.next_offset = epoch.logs.deltas.range()[1]
    epoch.write_base(epoch.cut_for_base())
    epoch.steps_in_base = epoch.learner.steps
    for table in epoch.learner.tables.values():
        table.ack_touched(table.take_touched().token)
    # A restart from an older checkpoint would find a base that it does not know, and begin with yet another one.
    epoch.stores.checkpoints.write(epoch.cut(), now_ms=epoch.now_ms())


def _begin_with_deltas(epoch: Epoch, cut_offset: int, published: _PublishedIds) -> None:
    """Shut older epochs out with an empty delta, then publish again what they published from `cut_offset` on.

    Args:
        epoch: that begins.
        cut_offset: where the deltas behind the checkpoint begin.
        published: has read from there to the epoch's `next_offset`.
    """
    read_to = epoch.publisher.next_offset
    epoch.publisher.fence(epoch.merge.position, now_ms=epoch.now_ms())
    epoch.publisher.flush(epoch.learner, ACKNOWLEDGE_TIMEOUT_MS)
    # What an older trainer wrote while this one read and claimed; what it completes from here on is refused by its epoch.
    published.read(epoch.logs.deltas.read(read_to, epoch.publisher.next_offset))
    for reason in published.damage:
        _log.warning("a delta that replicas refuse as well is left out: %s", reason)
    epoch.publisher.republish({name: np.array(sorted(ids), np.int64) for name, ids in published.by_table.items()})
    epoch.publisher.publish(epoch.learner, epoch.merge.position, now_ms=epoch.now_ms(), traceparent="")
    epoch.publisher.flush(epoch.learner, ACKNOWLEDGE_TIMEOUT_MS)
    num_ids = sum(len(ids) for ids in published.by_table.values())
    _log.info("published %d ids again that older epochs published behind delta offset %d", num_ids, cut_offset)


@dataclass(slots=True)
class _PublishedIds:
    """The ids, of rows and of tombstones, that older epochs published: one reader for the whole range, though it is read in parts.

    A delta may lie across two parts, and replicas apply it all the same. A damaged one is left out, as replicas do; those behind it count.
    """

    by_table: dict[str, set[int]] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)
    _reassembler: Reassembler = field(default_factory=Reassembler)

    def read(self, records: Iterable[Delta | None]) -> None:
        """Go on where the last part ended."""
        for record in records:
            if record is None:
                self.damage.append("a record is no delta")
                continue
            try:
                complete = self._reassembler.add(record)
                if complete is not None:
                    self._add(complete)
            except CorruptArtifact as error:
                self.damage.append(str(error))

    def _add(self, complete: CompleteDelta) -> None:
        for name, table in complete.decode().tables.items():
            both: list[Int64s] = [table.ids, table.tombstones]
            self.by_table.setdefault(name, set()).update(np.concatenate(both).tolist())
