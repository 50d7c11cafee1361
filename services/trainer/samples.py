"""What a record of samples.v1 means to the learner: a group that can be learned, a tick, or something to set aside with a reason. Pure.

One poisoned number would spread over all weights, so everything that the learner takes on trust is looked at here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from tunemesh.samples.v1.sample_pb2 import Sample, SampleGroup, SampleRecord

from services.common.events.dead_letter_reasons import MALFORMED, SCHEMA_MISMATCH
from services.common.events.envelope import Headers, MalformedRecord, header, parse_value
from services.common.events.limits import check_ids
from services.common.platform.errors import CorruptArtifact
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.dedup import NO_OFFSET, DedupWindow
from services.trainer.merge import GroupRecord, Segment, TickRecord
from services.trainer.targets import Said, said, says_something_new

_EXPONENT = np.uint16(0x7C00)


class UnusableSample(Exception):
    """A record that the learner must not see.

    Attributes:
        reason: machine-readable, of services.common.events.dead_letters.
    """

    def __init__(self, reason: str, detail: str) -> None:
        """`detail` is for people."""
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Learnable:
    """A sound group, and the trace that it belongs to."""

    group: SampleGroup
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
        return TickRecord(offset, record.tick.tick, record.tick.watermark_ms, record.tick.exposures_position)
    if kind is None:
        raise UnusableSample(MALFORMED, "neither a group nor a tick")
    _check_group(spec, record.group)
    return GroupRecord(offset, Learnable(record.group, header(headers, "traceparent") or ""))


def without_repeats(group: SampleGroup, segment: Segment[Learnable], window: DedupWindow) -> SampleGroup | None:
    """Return a group of a segment with those samples only that are to be learned, and let the window know them; None when none is left."""
    is_new = remember(group, segment, window)
    if is_new.all():
        return group
    return _only(group, np.flatnonzero(is_new).tolist())


def without_repeated_opinions(group: SampleGroup) -> SampleGroup | None:
    """Return the group without the samples that change nothing, which are no occurrences either; None when none is left."""
    rows = [row for row, sample in enumerate(group.samples) if says_something_new(sample)]
    return group if len(rows) == len(group.samples) else _only(group, rows)


def _only(group: SampleGroup, rows: Sequence[int]) -> SampleGroup | None:
    if not rows:
        return None
    rest = SampleGroup()
    rest.CopyFrom(group)
    del rest.samples[:]
    rest.samples.extend(group.samples[row] for row in rows)
    rest.features_block = exposure_block.select(group.features_block, rows)
    return rest


def remember(group: SampleGroup, segment: Segment[Learnable], window: DedupWindow) -> NDArray[np.bool_]:
    """Let the window know the samples of a group of a segment; return bool [samples of the group], true where one is new."""
    return window.add(
        np.array([sample.sample_id for sample in group.samples], np.uint64),
        partition=segment.partition,
        exposure_offset=group.exposure_offset if group.HasField("exposure_offset") else NO_OFFSET,
        exposures_done=segment.exposures_done,
    )


def all_finite(halves: NDArray[np.float16]) -> bool:
    """Return whether no float16 is NaN or infinite: those are the ones whose exponent is all ones."""
    return not bool(((halves.view(np.uint16) & _EXPONENT) == _EXPONENT).any())


def _check_group(spec: FeatureSpec, group: SampleGroup) -> None:
    if group.schema_hash != spec.schema_hash:
        raise UnusableSample(SCHEMA_MISMATCH, f"feature spec {group.schema_hash!r}, this trainer has {spec.schema_hash!r}")
    try:
        features = exposure_block.decode(group.features_block, spec)
    except CorruptArtifact as error:
        raise UnusableSample(MALFORMED, str(error)) from error
    if not group.samples or len(features) != len(group.samples):
        raise UnusableSample(MALFORMED, f"{len(group.samples)} samples, but {len(features)} rows of features")
    for name, values in (("history", features.history_values_L), ("user", features.user_U), ("item", features.items_NF)):
        if not all_finite(values):
            raise UnusableSample(MALFORMED, f"{name} features hold NaN or infinity")
    check_ids("item_id", [sample.item_id for sample in group.samples], partial(UnusableSample, MALFORMED))
    # Nearly all samples of a group say the same: what was found sound once is not looked at again.
    sound: set[tuple[float, Said, Said]] = set()
    for sample in group.samples:
        says = (sample.keep_rate, said(sample.labels), said(sample.replaces))
        if says not in sound:
            _check_sample(spec, sample)
            sound.add(says)


def _check_sample(spec: FeatureSpec, sample: Sample) -> None:
    if not 0.0 < sample.keep_rate <= 1.0:
        raise UnusableSample(MALFORMED, f"keep_rate {sample.keep_rate} of item {sample.item_id!r} is not in (0, 1]")
    task_names = spec.task_names
    for labels in (sample.labels, sample.replaces):
        for label in labels:
            if label.task not in task_names:
                raise UnusableSample(MALFORMED, f"label for task {label.task!r}, which the feature spec does not name")
            if not (math.isfinite(label.value) and 0.0 <= label.value <= 1.0):
                raise UnusableSample(MALFORMED, f"label {label.value} for task {label.task!r} is not in [0, 1]")
        if len({label.task for label in labels}) != len(labels):
            raise UnusableSample(MALFORMED, f"two labels for one task of item {sample.item_id!r}")
