"""What a starting trainer does with what it finds: continue, begin anew, adopt foreign weights, or refuse. Pure.

Three things must belong together: the broker's history (its lineage id in control.v1), the newest checkpoint (which names the lineage that
its offsets refer to) and the sample logs (which must still hold those offsets). When they do not, offsets mean nothing, and believing them
would skip or repeat samples without a word. Then the trainer refuses to start, or, when the operator has said so, keeps the weights and
forgets the offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from services.common.platform.control import ControlState
from services.common.platform.errors import ConfigurationError
from services.trainer.merge import PartitionPosition, Position, start_position

OnLineageChange = Literal["refuse", "adopt"]

_ADOPT = (
    "to keep the weights and learn on from the oldest samples that this broker holds of each partition that does not fit, "
    "start once with {variable}=adopt"
)


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Samples that a rollback left out: offsets [first, end) of a partition of samples.v1."""

    partition: int
    first: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What an operator had restored: the epoch that continues from such a cut goes back.

    Attributes:
        checkpoint: name of the checkpoint whose weights these are.
        skipped: offsets of samples.v1 that are passed over, per partition.
        actor: who asked.
        epoch: that wrote that checkpoint, whose deltas its seq counts; 0 when that is not known.
    """

    checkpoint: str
    skipped: tuple[int, ...]
    actor: str
    epoch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What a checkpoint says about itself.

    Attributes:
        name: of the checkpoint, e.g. "checkpoint-000001-00000004".
        lineage_id: the broker's history that `position` and `delta_offset` refer to.
        epoch: of the trainer that wrote it.
        base_id: the newest base at the cut; empty when replicas have to get a new one before anything else.
        position: what the weights contain.
        delta_offset: offset in ranker.deltas.v1 behind the last delta whose content is in the weights and was acknowledged.
        restored: not None when it was not cut from a running learner, but copied from an older checkpoint.
        row_dtype: how exact the rows are that replicas have (delta_pb2.RowDtype); 0 when that is not known.
        passed_over: what `position` is behind of, and the weights do not contain.
    """

    name: str
    lineage_id: str
    epoch: int
    base_id: str
    position: Position
    delta_offset: int
    restored: Restored | None = None
    row_dtype: int = 0
    passed_over: tuple[PassedOver, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the broker holds at the start. Ranges are [first offset, next offset)."""

    control: ControlState
    newest_base_id: str
    sample_ranges: Sequence[tuple[int, int]]
    delta_range: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do.

    Attributes:
        lineage_id: of the broker's history from now on; a new one is written to control.v1 when `lineage_is_new`.
        epoch: to claim.
        position: where learning goes on.
        publish_base: replicas cannot get from what they have to these weights by deltas.
        write_checkpoint: the position or lineage is in no checkpoint yet.
        note: for the log.
    """

    lineage_id: str
    lineage_is_new: bool
    epoch: int
    position: Position
    publish_base: bool
    write_checkpoint: bool
    note: str


def plan_start(
    model: str,
    cut: Cut | None,
    found: Found,
    *,
    new_lineage_id: str,
    row_dtype: int,
    on_lineage_change: OnLineageChange,
    variable: str,
    where: str,
) -> Plan:
    """Decide what a starting trainer does with what it finds.

    Args:
        model: whose epochs to look at.
        cut: of the newest sound checkpoint; None when there is none.
        found: the broker's side.
        new_lineage_id: used when the broker's history has no id yet.
        row_dtype: how exact rows will be that replicas get; rows of two kinds side by side would differ with the way there.
        on_lineage_change: what the operator wants when things do not belong together.
        variable: name of the setting above, for messages.
        where: folder of the checkpoints, for messages.
    Raises:
        ConfigurationError: they do not belong together, and the setting says refuse.
    """
    lineage_id = found.control.lineage_id
    anew = Plan(
        lineage_id=lineage_id or new_lineage_id,
        lineage_is_new=not lineage_id,
        epoch=max(found.control.epoch(model), cut.epoch if cut else 0) + 1,
        position=start_position([first for first, _ in found.sample_ranges]),
        publish_base=True,
        write_checkpoint=True,
        note="no checkpoint: beginning with the oldest samples",
    )
    broken = _what_does_not_fit(model, cut, found, where)
    if broken:
        if on_lineage_change == "refuse":
            raise ConfigurationError(f"{broken}; {_ADOPT.format(variable=variable)}")
        position, kept = _adopted(cut, found)
        offsets = f"the offsets of {kept} of {len(found.sample_ranges)} partitions"
        note = f"adopting: {broken}; weights and de-duplication window are kept, and {offsets}"
        return replace(anew, position=position, note=note)
    if cut is None:
        return anew
    deltas_are_there = found.delta_range[0] <= cut.delta_offset <= found.delta_range[1]
    return replace(
        anew,
        position=cut.position,
        publish_base=not cut.base_id or found.newest_base_id != cut.base_id or not deltas_are_there or cut.row_dtype != row_dtype,
        write_checkpoint=False,
        note=f"continuing {cut.name}" + (f", the restored {cut.restored.checkpoint}" if cut.restored else ""),
    )


def _adopted(cut: Cut | None, found: Found) -> tuple[Position, int]:
    """Return where an adopting trainer goes on, and in how many partitions that is where the cut left off: each is looked at by itself.

    Offsets of another lineage, or of a topic that has fewer partitions now and so was made anew, mean nothing.
    """
    known: tuple[PartitionPosition, ...] = ()
    if cut is not None and cut.lineage_id == found.control.lineage_id and len(found.sample_ranges) >= len(cut.position.partitions):
        known = cut.position.partitions
    partitions, num_kept = [], 0
    for partition, (first, end) in enumerate(found.sample_ranges):
        if partition < len(known) and first <= known[partition].next_offset <= end:
            partitions.append(known[partition])
            num_kept += 1
        elif partition < len(known) and known[partition].next_offset < first:
            # What lay between is gone. Ticks and watermark go on: they do not go back.
            partitions.append(replace(known[partition], next_offset=first))
        else:
            partitions.append(PartitionPosition(first))
    return Position(tuple(partitions)), num_kept


def _what_does_not_fit(model: str, cut: Cut | None, found: Found, where: str) -> str:
    """Return in one line what does not belong together; empty when all does."""
    lineage_id = found.control.lineage_id
    if cut is None:
        claim = found.control.epoch_claim(model)
        if claim is None:
            return ""
        return f"control.v1 says that epoch {claim.epoch} of {model} continued {claim.continues_from!r}, but {where} holds no checkpoint"
    if not lineage_id:
        return (
            f"the broker has no lineage, but {cut.name} in {where} is of lineage {cut.lineage_id}: its data is lost, or it is another one"
        )
    if lineage_id != cut.lineage_id:
        return f"the broker's lineage is {lineage_id}, but {cut.name} in {where} is of lineage {cut.lineage_id}"
    if len(found.sample_ranges) != len(cut.position.partitions):
        return (
            f"samples.v1 has {len(found.sample_ranges)} partitions, but {cut.name} in {where} was cut from {len(cut.position.partitions)}"
        )
    for partition, ((first, end), offset) in enumerate(zip(found.sample_ranges, cut.position.offsets, strict=True)):
        if offset < first:
            return f"samples.v1[{partition}] begins at offset {first}, but {cut.name} continues at {offset}: samples were deleted unlearned"
        if offset > end:
            return f"samples.v1[{partition}] ends at offset {end}, but {cut.name} continues at {offset}: the broker lost samples"
    return ""
