"""What a record of samples.v1 means to the learner: a group that can be learned, a tick, or something to set aside with a reason. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tunemesh.samples.v1.sample_pb2 import SampleRecord

from services.common.events.dead_letter_reasons import MALFORMED
from services.common.events.dead_letters import REDRIVEN_HEADER
from services.common.events.envelope import Headers, MalformedRecord, header, parse_value
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.dedup import NO_OFFSET, DedupWindow
from services.trainer.group_columns import GroupColumns, UnusableSample, columns_of
from services.trainer.merge import GroupRecord, Segment, TickRecord

__all__ = ["Learnable", "UnusableSample", "parse_record", "remember", "without_repeated_opinions", "without_repeats"]


@dataclass(frozen=True, slots=True)
class Learnable:
    """A sound group, and the trace that it belongs to."""

    group: GroupColumns
    traceparent: str


def parse_record(spec: FeatureSpec, offset: int, value: bytes | None, headers: Headers) -> GroupRecord[Learnable] | TickRecord:
    """Return the record at `offset` as the merge takes it.

    Raises:
        UnusableSample: it is malformed, or was made under another feature spec.
    """
    try:
        record = parse_value(value, headers, SampleRecord)
    except MalformedRecord as error:
        raise UnusableSample(MALFORMED, str(error)) from error
    kind = record.WhichOneof("record")
    if kind == "tick":
        tick = record.tick
        return TickRecord(offset, tick.tick, tick.watermark_ms, tick.exposures_position, tick.exposures_log)
    if kind is None:
        raise UnusableSample(MALFORMED, "neither a group nor a tick")
    group = columns_of(spec, record.group)
    if header(headers, REDRIVEN_HEADER) is not None:
        group = replace(group, is_redriven=True)
    return GroupRecord(offset, Learnable(group, header(headers, "traceparent") or ""))


def without_repeats(group: GroupColumns, segment: Segment[Learnable], window: DedupWindow) -> GroupColumns | None:
    """Return a group of a segment with those samples only that are to be learned, and let the window know them; None when none is left."""
    is_new = remember(group, segment, window)
    return group if is_new.all() else group.only(np.flatnonzero(is_new).tolist())


def without_repeated_opinions(group: GroupColumns) -> GroupColumns | None:
    """Return the group without the samples that change nothing, which are no occurrences either; None when none is left."""
    return group.only([row for row, meaning in enumerate(group.meanings) if meaning.is_news])


def remember(group: GroupColumns, segment: Segment[Learnable], window: DedupWindow) -> NDArray[np.bool_]:
    """Let the window know the samples of a group of a segment; return bool [samples of the group], true where one is new.

    What a joiner writes about an exposure that is done is a repetition. What an operator puts back from the dead letters may be older than
    that, and was never learned: the ids alone tell whether it was put back before.
    """
    is_known_by_id_alone = group.is_redriven and group.exposure_offset < segment.exposures_done
    return window.add(
        np.array(group.sample_ids, np.uint64),
        partition=segment.partition,
        exposure_offset=NO_OFFSET if is_known_by_id_alone else group.exposure_offset,
        exposures_done=segment.exposures_done,
    )
