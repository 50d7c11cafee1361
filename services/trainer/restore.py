"""Going back: decides which checkpoint to restore, from which samples to go on, and makes the checkpoint that the next epoch begins with.

    newest checkpoint up to a time or version -> [pass over the later samples] -> a copy of it, named as the running epoch's next one

Writing that copy decides the restore: whichever way this process ends then, the next start continues from it. What follows is an ordinary
start (epoch_start.open_epoch): a new epoch, a fence, and every id that was published behind the checkpoint's cut published again, as it was
then: a row, or a tombstone. Before the copy is written, nothing is changed.

It knows its neighbours as Protocols: neither Kafka, nor threads, nor what time it is.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from services.common.events.envelope import Headers
from services.common.platform.errors import Conflict, NotFound, Unavailable
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.checkpoints import Checkpoint, Dated, Version
from services.trainer.dedup import DedupWindow
from services.trainer.epoch import Epoch
from services.trainer.merge import Position, TickMerge, UnusableRecord
from services.trainer.plan import PassedOver, Restored
from services.trainer.samples import Learnable, UnusableSample, parse_record, remember

_log = logging.getLogger(__name__)

_POLL_MS = 50
_MOST_PASSED_OVER = 1_000
"""Ranges of offsets that are remembered: beyond them the oldest are forgotten, whose samples the log will hardly hold any more."""
# A broker that gives nothing for so long, while more is there, is taken for absent.
_MAX_QUIET_POLLS = 200


class RawSample(Protocol):
    """One record of samples.v1 as it lies there."""

    @property
    def partition(self) -> int: ...  # noqa: D102
    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def key(self) -> bytes | None: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102
    @property
    def headers(self) -> Headers: ...  # noqa: D102


class SampleSource(Protocol):
    """samples.v1, positioned by the epoch."""

    def poll(self, timeout_ms: int) -> Sequence[RawSample]:
        """Return what has come; waits at most timeout_ms for something."""

    def hold(self, partitions: Collection[int]) -> None:
        """Fetch nothing from these partitions until they are not named any more."""

    def read_to(self) -> list[int]:
        """Return per partition the offset behind all that `poll` has returned, and behind what it will never return."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRequest:
    """What an operator wants.

    Attributes:
        not_after: go back to the newest checkpoint written at or before this, Unix milliseconds, or to that of the newest weights up to
            this version.
        skip_later_samples: never learn what lies between that checkpoint and the present end of the log; else learn it again.
        actor: who asks.
    """

    not_after: int | Version
    skip_later_samples: bool
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to write, so that the next epoch continues from it.

    Attributes:
        target: the checkpoint that is restored.
        checkpoint: the copy of it to continue from.
        skipped: offsets passed over, per partition.
    """

    target: Dated
    checkpoint: Checkpoint
    skipped: tuple[int, ...]


def decide(epoch: Epoch, source: SampleSource, spec: FeatureSpec, request: RestoreRequest) -> Decision:
    """Return what to write. Nothing is changed but what `source` will return next: `epoch.rewind` before the epoch goes on.

    Raises:
        NotFound: no checkpoint is that old, or no such version was published yet; says what is there.
        Conflict: the samples behind the checkpoint are gone, so they cannot be learned again.
        Unavailable: broker or store do not answer.
    """
    target = _target(epoch, request.not_after)
    old = target.checkpoint
    position, dedup = old.cut.position, old.dedup
    ranges = epoch.logs.samples.ranges()
    if len(ranges) != len(position.partitions):
        raise Conflict(f"samples.v1 has {len(ranges)} partitions now, {old.cut.name} was cut from {len(position.partitions)}")
    if request.skip_later_samples:
        position, window = _pass_over(epoch, source, spec, [end for _, end in ranges])
        dedup = window.to_arrays()
    else:
        _require_samples(old.cut.name, position, ranges)
    # A target that lies ahead of what is learned now (a restore of a restore) has nothing to pass over.
    skipped = tuple(max(to - since, 0) for to, since in zip(position.offsets, old.cut.position.offsets, strict=True))
    restored = Restored(checkpoint=old.cut.name, skipped=skipped, actor=request.actor, epoch=old.version.epoch)
    ends = zip(position.offsets, skipped, strict=True)
    left_out = [PassedOver(partition, end - count, end) for partition, (end, count) in enumerate(ends) if count]
    passed_over = (*old.cut.passed_over, *left_out)[-_MOST_PASSED_OVER:]
    cut = replace(
        old.cut, name=epoch.next_checkpoint_name(), epoch=epoch.number, position=position, restored=restored, passed_over=passed_over
    )
    _log.info("restoring %s, written at %d, for %s: %s samples passed over", old.cut.name, target.created_at_ms, request.actor, skipped)
    return Decision(target=target, checkpoint=replace(old, cut=cut, dedup=dedup), skipped=skipped)


def _target(epoch: Epoch, not_after: int | Version) -> Dated:
    if not isinstance(not_after, Version):
        return epoch.stores.checkpoints.at_or_before(not_after, lineage_id=epoch.lineage_id)
    newest = Version(epoch.number, epoch.publisher.seq)
    if not_after > newest:
        raise NotFound(f"version {not_after} was not published yet: the newest is {newest}")
    return epoch.stores.checkpoints.at_or_before_version(not_after, lineage_id=epoch.lineage_id)


def _require_samples(name: str, position: Position, ranges: Sequence[tuple[int, int]]) -> None:
    for partition, ((first, end), offset) in enumerate(zip(ranges, position.offsets, strict=True)):
        if not first <= offset <= end:
            raise Conflict(
                f"samples.v1[{partition}] holds offsets {first} to {end}, {name} continues at {offset}: "
                "what came after it cannot be learned again, but it can be skipped"
            )


def _pass_over(epoch: Epoch, source: SampleSource, spec: FeatureSpec, ends: Sequence[int]) -> tuple[Position, DedupWindow]:
    """Read on from where the epoch is to `ends`, learning nothing; return the position there and the window of all ids up to it.

    The ids count as learned: a joiner that crashed and repeats these samples must not bring them back.
    """
    window = epoch.dedup.copy()
    merge: TickMerge[Learnable] = TickMerge(epoch.merge.position, batch_groups=1)
    epoch.logs.samples.seek(merge.position.offsets)
    source.hold([])
    num_quiet = 0
    while any(at < end for at, end in zip(source.read_to(), ends, strict=True)):
        records = source.poll(_POLL_MS)
        num_quiet = 0 if records else num_quiet + 1
        if num_quiet > _MAX_QUIET_POLLS:
            raise Unavailable(f"the broker gives no samples up to offsets {list(ends)}: try again when it does")
        for record in records:
            try:
                merge.push(record.partition, parse_record(spec, record.offset, record.value, record.headers))
            except UnusableSample:
                merge.push(record.partition, UnusableRecord(record.offset))
        for segment in merge.pass_over(ends):
            for item in segment.groups:
                remember(item.group, segment, window)
    return merge.position, window
