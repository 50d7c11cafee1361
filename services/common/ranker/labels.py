"""From feedback to labels, and which unanswered items become negatives. Pure; shared by the joiner and the batch trainer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.common.events.feedback_kinds import IMPRESSION
from services.common.platform.errors import InvalidInput
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.spec_parts import LabelThreshold


class UnknownKind(InvalidInput):
    """The feedback kind is not in the feature spec. Retrying does not help."""


class ValueOutOfRange(InvalidInput):
    """The value is outside the range of its kind. Retrying does not help."""


class Label(NamedTuple):
    """What a sample says about one task."""

    task: str
    value: float


def value_fault(spec: FeatureSpec, kind: str, value: float) -> str | None:
    """Return what is wrong with the value of a feedback of that kind, or None when it can be learned.

    A value outside the scale of its kind is no opinion on it: 0 stars is how many systems write "not rated". It is set aside and counted,
    never moved to the end of the scale. NaN says that there is none (a null). Kinds that are unknown, or whose value nothing looks at, have
    none to get wrong.
    """
    known = spec.kinds.get(kind)
    if known is None:
        return None
    if known.value_range is None:
        judged = any(isinstance(task.labels.get(kind), LabelThreshold) for task in spec.tasks)
        return f"value: there is none, and kind {kind!r} is judged by it" if judged and value != value else None
    lowest, highest = known.value_range
    if lowest <= value <= highest:
        return None
    found = "there is none; it must be within" if value != value else f"{value:g} is outside"
    return f"value: {found} the range of kind {kind!r}, {lowest:g} to {highest:g}"


def labels_for(spec: FeatureSpec, kind: str, value: float) -> tuple[Label, ...]:
    """Return the labels that one feedback gives, in the order of the spec's tasks; tasks it says nothing about are absent.

    Raises:
        UnknownKind: `kind` is not in the spec.
        ValueOutOfRange: see `value_fault`.
    """
    if kind not in spec.kinds:
        raise UnknownKind(f"feedback kind {kind!r} is not in the feature spec (known: {', '.join(sorted(spec.kinds))})")
    fault = value_fault(spec, kind, value)
    if fault is not None:
        raise ValueOutOfRange(fault)
    labels = []
    for task in spec.tasks:
        rule = task.labels.get(kind)
        if rule is None:
            continue
        positive = value >= rule.at_least if isinstance(rule, LabelThreshold) else True
        labels.append(Label(task.name, 1.0 if positive else 0.0))
    return tuple(labels)


def labels_of_row(spec: FeatureSpec, kind: str, value: float) -> tuple[Label, ...]:
    """Return the labels of a row of a file of events: those of the act, or of an impression that nobody answered.

    Raises:
        UnknownKind, ValueOutOfRange: see `labels_for`.
    """
    return negative_labels(spec) if kind == IMPRESSION.name else labels_for(spec, kind, value)


class Standing(NamedTuple):
    """A label that holds until feedback accepted at or after `accepted_at_ms` says something else."""

    label: Label
    accepted_at_ms: int


def revise(spec: FeatureSpec, standing: tuple[Standing, ...], said: tuple[Label, ...], accepted_at_ms: int) -> tuple[Standing, ...]:
    """Return which labels stand after one more feedback about the same item, in the order of the spec's tasks.

    Of each task the feedback accepted last holds, whenever it was read; of two accepted in the same millisecond, the one read last.
    Tasks that the feedback says nothing about keep their label.

    Args:
        spec: orders the tasks.
        standing: what earlier feedback said; empty before the first.
        said: the feedback's labels, of `labels_for`.
        accepted_at_ms: when the feedback was accepted, Unix milliseconds.
    """
    by_task = {held.label.task: held for held in standing}
    for label in said:
        held = by_task.get(label.task)
        if held is None or accepted_at_ms >= held.accepted_at_ms:
            by_task[label.task] = Standing(label, accepted_at_ms)
    return tuple(by_task[name] for name in spec.task_names if name in by_task)


def negative_labels(spec: FeatureSpec) -> tuple[Label, ...]:
    """Return the labels of an exposed item that nobody answered."""
    return tuple(Label(task.name, 0.0) for task in spec.tasks if task.unanswered is not None)


def keep_negative(sample_id: int, rate: float) -> bool:
    """Say whether the negative with this id is kept; a function of the id alone, so that a replay keeps the same ones.

    The id is already a uniform hash (platform.ids.sample_id); one more mixing step makes the choice independent of its other uses.
    """
    mixed = (sample_id * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 32)) * 0xD6E8FEB86659FD93) & 0xFFFFFFFFFFFFFFFF
    return (mixed >> 11) < rate * (1 << 53)


def keep_negatives(sample_ids_N: npt.NDArray[np.uint64], rate: float) -> npt.NDArray[np.bool_]:
    """Return `keep_negative` of each id, bool [N]."""
    mixed_N = sample_ids_N * np.uint64(0x9E3779B97F4A7C15)
    mixed_N = (mixed_N ^ (mixed_N >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return (mixed_N >> np.uint64(11)).astype(np.float64) < rate * (1 << 53)
