"""One epoch of the ranker worker: learns batches, cuts checkpoints, publishes bases. `epoch_start` opens it.

It knows its neighbours as Protocols: neither Kafka, nor threads, nor what time it is.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray
from tunemesh.events.v1.delta_pb2 import BasePointer, RowDtype

from services.common.platform.errors import CorruptArtifact
from services.trainer.bases import base_name
from services.trainer.checkpoints import Checkpoint, Counters, checkpoint_name
from services.trainer.dedup import DedupWindow
from services.trainer.group_columns import GroupColumns
from services.trainer.matured import MaturedLabels
from services.trainer.merge import Batch, Segment, TickMerge
from services.trainer.neighbours import Fenced, HistoryLost, Learner, Logs, Stores
from services.trainer.plan import Cut, OnLineageChange, PassedOver
from services.trainer.publish_gate import PublishGateLimits, refusal
from services.trainer.publisher import DeltaPublisher
from services.trainer.quality_gate import QualityGate, QualityLimits
from services.trainer.samples import Learnable, without_repeated_opinions, without_repeats

_log = logging.getLogger(__name__)

ACKNOWLEDGE_TIMEOUT_MS = 30_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochConfig:
    """What the settings say about an epoch."""

    model: str
    schema_hash: str
    batch_groups: int
    dedup_window_samples: int
    dedup_max_samples: int
    dtype: RowDtype
    limits: PublishGateLimits
    quality: QualityLimits
    tasks: tuple[str, ...]
    unanswered: tuple[bool, ...]
    """By task: whether an item without an answer is a negative."""
    on_lineage_change: OnLineageChange
    on_lineage_change_variable: str
    actor: str


@dataclass(slots=True, kw_only=True)
class Epoch:
    """One running epoch; everything in it belongs to the worker's thread, but for `announce_base`.

    `number` is the epoch's, as it was claimed; `base_created_at_ms` is when the newest base was made, Unix milliseconds; `steps_in_base` is
    what the learner had learned by then, -1 when that is not known; `newest_accepted_ms` is when the newest feedback that it learned was
    accepted, Unix milliseconds; `passed_over` is what rollbacks left out of the weights.
    """

    learner: Learner
    logs: Logs
    stores: Stores
    config: EpochConfig
    lineage_id: str
    number: int
    merge: TickMerge[Learnable]
    dedup: DedupWindow
    publisher: DeltaPublisher
    labels: MaturedLabels
    quality: QualityGate
    counters: Counters
    now_ms: Callable[[], int]
    num_checkpoints: int = 0
    num_bases: int = 0
    base_created_at_ms: int = 0
    steps_in_base: int = -1
    newest_accepted_ms: int = 0
    passed_over: tuple[PassedOver, ...] = ()
    accepted_at_ms: list[int] = field(default_factory=list)

    @property
    def has_news(self) -> bool:
        """Whether a delta now would tell replicas something."""
        return self.publisher.is_behind(self.learner.steps, self.merge.position, newest_accepted_ms=self.newest_accepted_ms)

    def learn(self, batch: Batch[Learnable]) -> int:
        """Learn those samples of a batch that were not learned before; return their number."""
        items = [(segment, item.group) for segment in batch.segments for item in segment.groups]
        new = [(segment, group) for segment, whole in items if (group := without_repeats(whole, segment, self.dedup)) is not None]
        num_all = sum(len(whole) for _, whole in items)
        num_new = sum(len(group) for _, group in new)
        num_refused = self._refused()
        new = [(segment, rest) for segment, group in new if (rest := without_repeated_opinions(group)) is not None]
        if new:
            groups = [group for _, group in new]
            step = self.learner.learn(groups)
            self.publisher.note_step(num_samples=step.num_samples, gradient_norm=step.gradient_norm)
            self._judge(new, step.scores_BT)
            accepted_at_ms = [at_ms for group in groups for at_ms in group.accepted_at_ms if at_ms]
            self.newest_accepted_ms = max([self.newest_accepted_ms, *accepted_at_ms])
            self.accepted_at_ms += accepted_at_ms
        counters = self.counters
        self.counters = replace(
            counters,
            samples_trained=counters.samples_trained + num_new,
            duplicates_skipped=counters.duplicates_skipped + num_all - num_new - num_refused,
            refused_skipped=counters.refused_skipped + num_refused,
        )
        return num_new

    def _judge(self, new: Sequence[tuple[Segment[Learnable], GroupColumns]], scores_BT: NDArray[np.float32]) -> None:
        """Hold the scores from before the step to what they were."""
        row = 0
        for segment, pairs in itertools.groupby(new, key=itemgetter(0)):
            groups = [group for _, group in pairs]
            end = row + sum(len(group) for group in groups)
            place = {"partition": segment.partition, "watermark_ms": segment.watermark_ms}
            for block in self.labels.add(groups, scores_BT[row:end], **place):
                self.quality.judge(block)
            row = end
        self.publisher.quality_refusal = self.quality.refusal

    def _refused(self) -> int:
        """Return how many samples the window has just refused; says so at the first and whenever their number has doubled."""
        refused, before = self.dedup.take_refused(), self.counters.refused_skipped
        if (before + refused).bit_length() > before.bit_length():
            _log.error(
                "%d samples refused so far: their exposures are older than the %d remembered sample ids reach, so new samples cannot be "
                "told from repetitions; raise TUNEMESH_TRAINER_DEDUP_MAX_SAMPLES (120 bytes each), or shorten the joiner's "
                "TUNEMESH_JOINER_LATE_HORIZON_MS",
                before + refused, len(self.dedup),
            )  # fmt: skip
        return refused

    def accept_quality(self) -> None:
        """Take the quality of scores as it is now for the one to hold, if it was refused: an operator lets learning go on."""
        if self.quality.refusal:
            self.quality.forget()
            self.publisher.quality_refusal = ""

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
        return checkpoint_name(self.number, self.num_checkpoints)

    def cut(self) -> Checkpoint:
        """Return the whole state as it is at this micro-batch boundary; all copies, so that it can be written while learning goes on."""
        cut = Cut(
            name=self.next_checkpoint_name(),
            lineage_id=self.lineage_id,
            epoch=self.number,
            base_id=self.publisher.base_id,
            position=self.merge.position,
            delta_offset=self.publisher.next_offset,
            row_dtype=self.config.dtype,
            passed_over=self.passed_over,
        )
        return Checkpoint(
            cut=cut,
            seq=self.publisher.seq,
            within_seq=self.publisher.within_seq(self.learner.steps),
            counters=self.counters,
            arrays={**self.learner.state_arrays(), **self.quality.state_arrays()},
            dedup=self.dedup.to_arrays(),
        )

    def publish_base(self) -> BasePointer:
        """Publish a base of what is learned so far. Replicas that follow already need not load it.

        A delta goes before it, so that a replica that follows has the same rows as one that loads it. The checkpoint comes first: a restart
        must not fall behind what a replica may have loaded.

        Raises:
            CorruptArtifact: the publish gate refuses it.
            Unavailable: the broker or the store did not answer. The base may be half there; publish another.
        """
        self.publisher.flush(self.learner, ACKNOWLEDGE_TIMEOUT_MS)
        self.publisher.publish(self.learner, self.merge.position, now_ms=self.now_ms(), traceparent="")
        self.publisher.flush(self.learner, ACKNOWLEDGE_TIMEOUT_MS)
        checkpoint = self.cut_for_base()
        self.stores.checkpoints.write(checkpoint, now_ms=self.now_ms())
        return self.write_base(checkpoint)

    def refusal_of(self, checkpoint: Checkpoint) -> str:
        """Return why the publish gate would not let these weights pass, whether or not a delta has met it yet; empty when it would."""
        arrays = checkpoint.arrays
        rows = {name: arrays[f"table/{name}/rows"] for name in self.learner.tables}
        dense = {name: array for name, array in arrays.items() if name.startswith("dense/")}
        return refusal(rows, dense, self.config.limits) or self.quality.refusal

    def cut_for_base(self) -> Checkpoint:
        """Return a cut that names the base that is about to be made of it, unless the publish gate refuses it."""
        self.num_bases += 1
        checkpoint = self.cut()
        checkpoint = replace(checkpoint, cut=replace(checkpoint.cut, base_id=base_name(self.number, self.num_bases)))
        if reason := self.refusal_of(checkpoint):
            raise CorruptArtifact(f"the publish gate refuses base {checkpoint.cut.base_id}: {reason}")
        return checkpoint

    def write_base(self, checkpoint: Checkpoint) -> BasePointer:
        """Make a base of a cut that names one, announce it, and let older bases go.

        Raises:
            Unavailable: the broker or the store did not answer.
        """
        pointer = self.announce_base(checkpoint)
        self.note_base(pointer)
        return pointer

    def announce_base(self, checkpoint: Checkpoint) -> BasePointer:
        """Do what `write_base` does, in any thread; `note_base` follows in the worker's.

        Raises:
            Unavailable: the broker or the store did not answer.
        """
        cut = checkpoint.cut
        artifact = self.stores.bases.write(checkpoint, epoch=self.number, seq=checkpoint.seq, now_ms=self.now_ms())
        pointer = BasePointer(
            model=self.config.model,
            base_id=cut.base_id,
            uri=artifact.url,
            schema_hash=self.config.schema_hash,
            lineage_id=self.lineage_id,
            epoch=self.number,
            seq=checkpoint.seq,
            delta_offsets=[cut.delta_offset],
            manifest_crc32c=artifact.manifest_crc32c,
            created_at_ms=self.now_ms(),
        )
        self.logs.bases.append(pointer)
        self.stores.bases.prune(cut.base_id, self.lineage_id)
        return pointer

    def note_base(self, pointer: BasePointer) -> None:
        """Let deltas and checkpoints name this base from now on."""
        self.publisher.base_id, self.base_created_at_ms = pointer.base_id, pointer.created_at_ms
        _log.info("published %s (%s), deltas continue behind %d.%d", pointer.base_id, pointer.uri, pointer.epoch, pointer.seq)

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
        if claim is not None and claim.epoch > self.number:
            raise Fenced(f"epoch {claim.epoch} of {self.config.model} was claimed: this trainer, of epoch {self.number}, stops")
