"""One epoch of the ranker worker: how it begins, learns a batch, cuts a checkpoint and publishes a base.

`open_session` runs the start in the order that makes each crash harmless:

    newest checkpoint + control.v1 -> plan -> [lineage] -> [checkpoint] -> epoch claim -> base, or fence and re-publication -> learn

A checkpoint exists before the first claim names it, the claim is durable before the first publish, and nothing is learned before replicas
have been told, as rows or tombstones, what an earlier epoch published after the cut.

It knows its neighbours as Protocols: neither Kafka, nor threads, nor what time it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tunemesh.events.v1.control_pb2 import ControlRecord, EpochClaim
from tunemesh.events.v1.delta_pb2 import BasePointer, Delta, RowDtype
from tunemesh.samples.v1.sample_pb2 import SampleGroup

from services.common.platform.control import ControlState
from services.common.platform.errors import CorruptArtifact, Unavailable
from services.common.ranker.delta import Reassembler
from services.common.ranker.tables.index import Int64s
from services.trainer.dedup import DedupWindow
from services.trainer.merge import TickMerge
from services.trainer.owner import ControlOwner
from services.trainer.plan import Cut, Found, OnLineageChange, Plan, plan_start
from services.trainer.prequential import TaskQuality
from services.trainer.publish_gate import GateLimits, refusal
from services.trainer.publisher import DeltaLog, DeltaPublisher, Identity, Published
from services.trainer.samples import Learnable, without_repeats
from services.trainer.stores import BaseStore, Checkpoint, CheckpointStore, Counters, base_name, checkpoint_name

_log = logging.getLogger(__name__)

_ACKNOWLEDGE_TIMEOUT_MS = 30_000


class Fenced(Exception):
    """A newer trainer has claimed a later epoch. This one must stop; retrying does not help."""


class HistoryLost(Exception):
    """The broker answers, but no longer holds what it held: retention removed it, or the broker lost its data. Retrying does not help."""


class Step(Protocol):
    """What one micro-batch did."""

    @property
    def num_samples(self) -> int:
        """Samples learned."""

    @property
    def gradient_norm(self) -> float:
        """L2 norm of all gradients that were applied."""


class Learner(Published, Protocol):
    """What learns. `services.trainer.learner.Learner` is the real one."""

    def step(self, groups: Sequence[SampleGroup]) -> Step:
        """Learn one micro-batch."""

    def prequential(self) -> Mapping[str, TaskQuality]:
        """Return how good the scores of the latest samples were before they were learned, by task."""

    def state_arrays(self) -> dict[str, NDArray[Any]]:
        """Return copies of the whole state."""

    def load_state_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Replace the state by what `state_arrays` returned."""

    def state_hash(self) -> str:
        """Return a hash of rows, optimizer state and dense weights."""


class ReadableDeltaLog(DeltaLog, Protocol):
    """ranker.deltas.v1, one shard, to write and to read back."""

    def range(self) -> tuple[int, int]:
        """Return [first offset, next offset)."""

    def read(self, first: int, end: int) -> Iterable[Delta]:
        """Go through the records at offsets [first, end); they need not fit into memory together.

        Raises, when the first one is asked for or later:
            HistoryLost: they are no longer there.
            Unavailable: the broker does not answer.
        """


class SampleRanges(Protocol):
    """samples.v1."""

    def ranges(self) -> list[tuple[int, int]]:
        """Return [first offset, next offset) per partition."""

    def seek(self, offsets: Sequence[int]) -> None:
        """Read on from these offsets."""


class BaseLog(Protocol):
    """ranker.bases.v1."""

    def newest(self, model: str) -> BasePointer | None:
        """Return the model's newest pointer."""

    def append(self, pointer: BasePointer) -> None:
        """Write a pointer, acknowledged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    """The broker's side."""

    samples: SampleRanges
    deltas: ReadableDeltaLog
    bases: BaseLog
    owner: ControlOwner


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """The artifacts' side."""

    checkpoints: CheckpointStore
    bases: BaseStore


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """What the settings say about a session."""

    model: str
    schema_hash: str
    batch_groups: int
    dedup_window_samples: int
    dtype: RowDtype
    limits: GateLimits
    on_lineage_change: OnLineageChange
    on_lineage_change_variable: str
    actor: str


@dataclass(slots=True, kw_only=True)
class Session:
    """The running state of one epoch; everything in it belongs to the worker's thread."""

    learner: Learner
    logs: Logs
    stores: Stores
    config: SessionConfig
    lineage_id: str
    epoch: int
    merge: TickMerge[Learnable]
    dedup: DedupWindow
    publisher: DeltaPublisher
    counters: Counters
    now_ms: Callable[[], int]
    num_checkpoints: int = 0
    num_bases: int = 0
    accepted_at_ms: list[int] = field(default_factory=list)

    def learn(self, batch: Sequence[Learnable]) -> int:
        """Learn those samples of a batch that were not learned before; return their number."""
        groups = [group for item in batch if (group := without_repeats(item.group, self.dedup)) is not None]
        num_all = sum(len(item.group.samples) for item in batch)
        num_new = sum(len(group.samples) for group in groups)
        if groups:
            step = self.learner.step(groups)
            self.publisher.note_step(num_samples=step.num_samples, gradient_norm=step.gradient_norm)
            self.accepted_at_ms += [sample.accepted_at_ms for group in groups for sample in group.samples if sample.accepted_at_ms]
        counters = self.counters
        self.counters = replace(
            counters,
            samples_trained=counters.samples_trained + num_new,
            duplicates_skipped=counters.duplicates_skipped + num_all - num_new,
        )
        return num_new

    def note_unusable(self) -> None:
        """Count a record that was set aside."""
        self.counters = replace(self.counters, unusable_skipped=self.counters.unusable_skipped + 1)

    def rewind(self) -> None:
        """Read again what was read ahead of the last micro-batch."""
        self.merge = TickMerge(self.merge.position, batch_groups=self.config.batch_groups)
        self.logs.samples.seek(self.merge.position.offsets)

    def next_checkpoint_name(self) -> str:
        """Return a name that sorts behind every one of this epoch that was returned before."""
        self.num_checkpoints += 1
        return checkpoint_name(self.epoch, self.num_checkpoints)

    def cut(self) -> Checkpoint:
        """Return the whole state as it is at this micro-batch boundary; all copies, so that it can be written while learning goes on."""
        cut = Cut(
            name=self.next_checkpoint_name(),
            lineage_id=self.lineage_id,
            epoch=self.epoch,
            base_id=self.publisher.base_id,
            position=self.merge.position,
            delta_offset=self.publisher.next_offset,
        )
        return Checkpoint(
            cut=cut,
            seq=self.publisher.seq,
            counters=self.counters,
            arrays=self.learner.state_arrays(),
            dedup_ids=self.dedup.to_array(),
        )

    def publish_base(self) -> BasePointer:
        """Publish a base of what is learned so far. Replicas that follow already need not load it.

        The checkpoint comes first: a restart must not fall behind what a replica may have loaded.

        Raises:
            CorruptArtifact: the gate refuses it.
            Unavailable: the broker or the store did not answer. The base may be half there; publish another.
        """
        self.publisher.flush(self.learner, _ACKNOWLEDGE_TIMEOUT_MS)
        checkpoint = self._cut_for_base()
        self.stores.checkpoints.write(checkpoint, now_ms=self.now_ms())
        return self._write_base(checkpoint)

    def _cut_for_base(self) -> Checkpoint:
        """Return a cut that names the base that is about to be made of it, unless the gate refuses it."""
        self.num_bases += 1
        checkpoint = self.cut()
        checkpoint = replace(checkpoint, cut=replace(checkpoint.cut, base_id=base_name(self.epoch, self.num_bases)))
        arrays = checkpoint.arrays
        rows = {name: arrays[f"table/{name}/rows"] for name in self.learner.tables}
        reason = refusal(rows, {name: array for name, array in arrays.items() if name.startswith("dense/")}, self.config.limits)
        if reason:
            raise CorruptArtifact(f"the gate refuses base {checkpoint.cut.base_id}: {reason}")
        return checkpoint

    def _write_base(self, checkpoint: Checkpoint) -> BasePointer:
        cut = checkpoint.cut
        artifact = self.stores.bases.write(checkpoint, epoch=self.epoch, seq=self.publisher.seq, now_ms=self.now_ms())
        pointer = BasePointer(
            model=self.config.model,
            base_id=cut.base_id,
            uri=artifact.url,
            schema_hash=self.config.schema_hash,
            lineage_id=self.lineage_id,
            epoch=self.epoch,
            seq=self.publisher.seq,
            delta_offsets=[cut.delta_offset],
            manifest_crc32c=artifact.manifest_crc32c,
            created_at_ms=self.now_ms(),
        )
        self.logs.bases.append(pointer)
        self.stores.bases.prune()
        self.publisher.base_id = cut.base_id
        _log.info("published %s (%s), deltas continue behind %d.%d", cut.base_id, artifact.url, self.epoch, self.publisher.seq)
        return pointer

    def check_ownership(self) -> None:
        """Look whether this epoch still owns the model, in this broker's history.

        Raises:
            Fenced: a later epoch was claimed.
            HistoryLost: the broker's lineage is another one now.
            Unavailable: the broker does not answer.
        """
        self.logs.owner.sync()
        state = self.logs.owner.state
        if state.lineage_id != self.lineage_id:
            raise HistoryLost(f"the broker's lineage changed from {self.lineage_id} to {state.lineage_id!r}")
        claim = state.epoch_claim(self.config.model)
        if claim is not None and claim.epoch > self.epoch:
            raise Fenced(f"epoch {claim.epoch} of {self.config.model} was claimed: this trainer, of epoch {self.epoch}, stops")

    def begin_with_base(self) -> None:
        """Publish the base that this epoch begins with; nothing that was to be published before matters any more."""
        self.publisher.next_offset = self.logs.deltas.range()[1]
        self._write_base(self._cut_for_base())
        for table in self.learner.tables.values():
            table.ack_touched(table.take_touched().token)
        # A restart from an older checkpoint would find a base that it does not know, and begin with yet another one.
        self.stores.checkpoints.write(self.cut(), now_ms=self.now_ms())

    def begin_with_deltas(self, cut_offset: int, published: dict[str, set[int]]) -> None:
        """Shut older epochs out with an empty delta, then publish again what they published from `cut_offset` on.

        Args:
            cut_offset: where the deltas behind the checkpoint begin.
            published: ids by table that have been found there already.
        """
        read_to = self.publisher.next_offset
        self.publisher.fence(self.merge.position, now_ms=self.now_ms())
        self.publisher.flush(self.learner, _ACKNOWLEDGE_TIMEOUT_MS)
        # What an older trainer wrote while this one read and claimed; what it writes from here on is refused by its epoch.
        try:
            _collect_ids(self.logs.deltas.read(read_to, self.publisher.next_offset), published)
        except CorruptArtifact as error:
            _log.warning("a delta that replicas refuse as well is left out: %s", error)
        self.publisher.republish({name: np.array(sorted(ids), np.int64) for name, ids in published.items()})
        self.publisher.publish(self.learner, self.merge.position, now_ms=self.now_ms(), traceparent="")
        self.publisher.flush(self.learner, _ACKNOWLEDGE_TIMEOUT_MS)
        num_ids = sum(len(ids) for ids in published.values())
        _log.info("published %d ids again that older epochs published behind delta offset %d", num_ids, cut_offset)


def open_session(
    make_learner: Callable[[], Learner],
    logs: Logs,
    stores: Stores,
    config: SessionConfig,
    *,
    now_ms: Callable[[], int],
    new_lineage_id: str,
    initial_arrays: Callable[[], Mapping[str, NDArray[Any]] | None],
) -> Session:
    """Begin an epoch; when this returns, replicas have what the learner has, and `learn` may begin.

    Args:
        make_learner: returns a fresh one; called when it is clear that the start is not refused, since it takes seconds to load torch.
        logs: the broker's side.
        stores: the artifacts' side.
        config: see SessionConfig.
        now_ms: Unix milliseconds.
        new_lineage_id: used when the broker's history has no id yet.
        initial_arrays: what a learner without a checkpoint begins with; None keeps it as it is.
    Raises:
        ConfigurationError: checkpoint, feature spec and broker do not belong together.
        Unavailable: broker or store do not answer.
    """
    checkpoint = stores.checkpoints.newest()
    logs.owner.sync()
    plan = _plan(checkpoint, logs, stores, config, new_lineage_id)
    _log.info("%s", plan.note)
    learner = make_learner()
    dedup = DedupWindow(config.dedup_window_samples)
    if checkpoint is not None:
        learner.load_state_arrays(checkpoint.arrays)
        dedup = DedupWindow.from_array(checkpoint.dedup_ids, config.dedup_window_samples)
    elif (arrays := initial_arrays()) is not None:
        learner.load_state_arrays(arrays)
    if plan.lineage_is_new:
        logs.owner.write(lambda state: _lineage_record(state, plan.lineage_id, config, now_ms()))
    session = Session(
        learner=learner,
        logs=logs,
        stores=stores,
        config=config,
        lineage_id=plan.lineage_id,
        epoch=plan.epoch,
        merge=TickMerge(plan.position, batch_groups=config.batch_groups),
        dedup=dedup,
        publisher=_publisher(checkpoint, plan, logs, config),
        counters=checkpoint.counters if checkpoint is not None else Counters(),
        now_ms=now_ms,
    )
    _claim(session, plan, checkpoint)
    _begin(session, plan, checkpoint)
    logs.samples.seek(session.merge.position.offsets)
    return session


def _plan(checkpoint: Checkpoint | None, logs: Logs, stores: Stores, config: SessionConfig, new_lineage_id: str) -> Plan:
    newest_base = logs.bases.newest(config.model)
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
        on_lineage_change=config.on_lineage_change,
        variable=config.on_lineage_change_variable,
        where=stores.checkpoints.url,
    )


def _publisher(checkpoint: Checkpoint | None, plan: Plan, logs: Logs, config: SessionConfig) -> DeltaPublisher:
    return DeltaPublisher(
        log=logs.deltas,
        identity=Identity(model=config.model, schema_hash=config.schema_hash, lineage_id=plan.lineage_id, epoch=plan.epoch),
        dtype=config.dtype,
        limits=config.limits,
        # Empty until there is a base, so that a checkpoint written before it says that one is owed.
        base_id=checkpoint.cut.base_id if checkpoint is not None and not plan.publish_base else "",
        next_offset=logs.deltas.range()[1],
        published_position=plan.position,
    )


def _lineage_record(state: ControlState, lineage_id: str, config: SessionConfig, now_ms: int) -> ControlRecord:
    if state.lineage_id:
        raise Unavailable(f"another trainer gave the broker lineage {state.lineage_id} at the same moment: start again")
    return state.lineage_change(lineage_id, now_ms=now_ms, actor=config.actor)


def _claim(session: Session, plan: Plan, checkpoint: Checkpoint | None) -> None:
    """Claim the epoch, naming a checkpoint that exists; somebody else's claim in between makes it a higher one."""
    continues_from = checkpoint.cut.name if checkpoint is not None else ""
    restored = checkpoint.cut.restored if checkpoint is not None else None
    if plan.write_checkpoint:
        first = session.cut()
        session.stores.checkpoints.write(first, now_ms=session.now_ms())
        continues_from = first.cut.name
    model, config = session.config.model, session.config

    def decide(state: ControlState) -> ControlRecord:
        epoch = max(state.epoch(model) + 1, plan.epoch)
        claim = EpochClaim(
            model=model,
            epoch=epoch,
            continues_from=restored.checkpoint if restored is not None else continues_from,
            lineage_id=plan.lineage_id,
            source_offsets=plan.position.offsets,
            skipped=restored.skipped if restored is not None else (),
        )
        return state.epoch_change(claim, now_ms=session.now_ms(), actor=restored.actor if restored is not None else config.actor)

    epoch = session.logs.owner.write(decide).epoch_claim.epoch
    session.epoch = epoch
    session.publisher.identity = replace(session.publisher.identity, epoch=epoch)
    _log.info("claimed epoch %d of %s, continuing %s", epoch, model, continues_from)


def _begin(session: Session, plan: Plan, checkpoint: Checkpoint | None) -> None:
    """Bring replicas to what the learner has."""
    if plan.publish_base or checkpoint is None:
        session.begin_with_base()
        return
    first, end = checkpoint.cut.delta_offset, session.logs.deltas.range()[1]
    published: dict[str, set[int]] = {}
    try:
        _collect_ids(session.logs.deltas.read(first, end), published)
    except (CorruptArtifact, HistoryLost) as error:
        _log.warning("what older epochs published cannot be read back, so replicas get a new base: %s", error)
        session.begin_with_base()
        return
    session.publisher.next_offset = end
    session.begin_with_deltas(first, published)


def _collect_ids(records: Iterable[Delta], ids_by_table: dict[str, set[int]]) -> None:
    """Add the ids, of rows and of tombstones, that the records hold.

    Raises:
        CorruptArtifact: a delta is damaged.
    """
    reassembler = Reassembler()
    for record in records:
        complete = reassembler.add(record)
        if complete is None:
            continue
        for name, table in complete.decode().tables.items():
            both: list[Int64s] = [table.ids, table.tombstones]
            ids_by_table.setdefault(name, set()).update(np.concatenate(both).tolist())
