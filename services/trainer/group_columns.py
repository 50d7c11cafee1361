"""A sample group as columns: what the learner needs of it, read from its message once, checked, and kept as plain values. Pure; no torch.

One poisoned number would spread over all weights, so everything that the learner takes on trust is looked at here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt
from tunemesh.samples.v1.sample_pb2 import Sample, SampleGroup, TaskLabel

from services.common.events.dead_letter_reasons import MALFORMED, SCHEMA_MISMATCH
from services.common.events.limits import check_ids
from services.common.platform.errors import CorruptArtifact
from services.common.ranker import exposure_block
from services.common.ranker.atomics import kernel
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Features
from services.common.ranker.labels import keep_negative
from services.trainer.dedup import NO_OFFSET
from services.trainer.targets import says_something_new, weights

Float32Array = npt.NDArray[np.float32]
Said = tuple[tuple[str, float], ...]

_EXPONENT = np.uint16(0x7C00)
# Labels are 0 and 1 as a rule, so there are a few kinds of samples; a producer that writes others must not fill memory.
_MAX_MEANINGS = 4_096
# Other groups than those whose first negative was kept.
_OF_USERS = 0x5DEECE66D


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
class Meaning:
    """What a sample says, as the learner takes it.

    Attributes:
        numbers: by task, T each: weight of the loss towards 1, weight of that towards 0 (both of `targets.weights`), label (NaN: none).
        is_news: whether it changes what is known of its item.
        first_T: by task, whether its label is the first one that feedback says of the item.
    """

    numbers: tuple[float, ...]
    is_news: bool
    first_T: tuple[bool, ...]

    @property
    def labels_T(self) -> tuple[float, ...]:
        """The labels by task; NaN: none."""
        return self.numbers[len(self.numbers) // 3 * 2 :]


@dataclass(frozen=True, slots=True)
class GroupColumns:
    """One sound group of N samples; lists are in the samples' order, as are the rows of `features.items_NF`.

    Attributes:
        request_id, exposed_at_ms: of the exposure.
        exposure_offset: in exposures.v1; NO_OFFSET when it is not known.
        features: of the block.
        sample_ids, item_ids, revisions, accepted_at_ms, positions: as in the message.
        meanings: of the labels.
        is_redriven: an operator put it back into the log from the dead letters.
    """

    request_id: str
    exposed_at_ms: int
    exposure_offset: int
    features: Features
    sample_ids: list[int]
    item_ids: list[str]
    revisions: list[int]
    accepted_at_ms: list[int]
    positions: list[int]
    meanings: list[Meaning]
    is_redriven: bool = False

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.sample_ids)

    def hides_user(self, rate: float) -> bool:
        """Say whether it is one of this share of groups that learn without their user's row; whichever negatives were kept."""
        return rate > 0 and keep_negative(self.sample_ids[0] ^ _OF_USERS, rate)

    def only(self, rows: Sequence[int]) -> GroupColumns | None:
        """Return the group with these samples only, itself when they are all; None when there are none."""
        if len(rows) == len(self):
            return self
        if not rows:
            return None
        return replace(
            self,
            features=self.features.only(rows),
            sample_ids=[self.sample_ids[row] for row in rows],
            item_ids=[self.item_ids[row] for row in rows],
            revisions=[self.revisions[row] for row in rows],
            accepted_at_ms=[self.accepted_at_ms[row] for row in rows],
            positions=[self.positions[row] for row in rows],
            meanings=[self.meanings[row] for row in rows],
        )


def columns_of(spec: FeatureSpec, group: SampleGroup) -> GroupColumns:
    """Return a group's columns.

    Raises:
        UnusableSample: it is malformed, or was made under another feature spec.
    """
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
    samples = list(group.samples)
    item_ids = [sample.item_id for sample in samples]
    check_ids("item_id", item_ids, partial(UnusableSample, MALFORMED))
    return GroupColumns(
        request_id=group.request_id,
        exposed_at_ms=group.exposed_at_ms,
        exposure_offset=group.exposure_offset if group.HasField("exposure_offset") else NO_OFFSET,
        features=features,
        sample_ids=[sample.sample_id for sample in samples],
        item_ids=item_ids,
        revisions=[sample.revision for sample in samples],
        accepted_at_ms=[sample.accepted_at_ms for sample in samples],
        positions=[sample.position for sample in samples],
        meanings=_meanings_of(spec, samples),
    )


def all_finite(halves: npt.NDArray[np.float16]) -> bool:
    """Return whether no float16 is NaN or infinite: those are the ones whose exponent is all ones."""
    return bool(_no_exponent_is_full(halves.reshape(-1).view(np.uint16)))


@kernel
def _no_exponent_is_full(bits: npt.NDArray[np.uint16]) -> bool:
    num_full = 0
    for at in range(bits.size):
        num_full += bits[at] & _EXPONENT == _EXPONENT
    return num_full == 0


def loss_weights(groups: Sequence[GroupColumns]) -> tuple[Float32Array, Float32Array]:
    """Return weights, float32 [B, T] each, of the losses of all samples towards 1 and towards 0; at least one sample."""
    numbers_BK = np.array([meaning.numbers for group in groups for meaning in group.meanings], dtype=np.float32)
    num_tasks = numbers_BK.shape[1] // 3
    return np.ascontiguousarray(numbers_BK[:, :num_tasks]), np.ascontiguousarray(numbers_BK[:, num_tasks : 2 * num_tasks])


def _meanings_of(spec: FeatureSpec, samples: Sequence[Sample]) -> list[Meaning]:
    """Return what each sample says. What one of them said before, in this group or another, is neither checked nor worked out again."""
    known = _known_meanings(spec.schema_hash, spec.negatives.keep_rate)
    meanings = []
    for sample in samples:
        replaces = sample.replaces
        was_said = _said(replaces) if replaces else ()
        says = (sample.keep_rate, sample.revision > 0, sample.retracts_negative, _said(sample.labels), was_said)
        meaning = known.get(says)
        if meaning is None:
            meaning = _meaning_of(spec, sample)
            if len(known) >= _MAX_MEANINGS:
                known.clear()
            known[says] = meaning
        meanings.append(meaning)
    return meanings


@lru_cache(16)
def _known_meanings(schema_hash: str, keep_rate: float) -> dict[tuple[float, bool, bool, Said, Said], Meaning]:  # noqa: ARG001 - the key
    """Return what samples of a feature spec were found to say: the schema's hash contains the tasks."""
    return {}


def _said(labels: Sequence[TaskLabel]) -> Said:
    if len(labels) == 1:  # as negatives have
        label = labels[0]
        return ((label.task, label.value),)
    return tuple([(label.task, label.value) for label in labels])


def _meaning_of(spec: FeatureSpec, sample: Sample) -> Meaning:
    _check_sample(spec, sample)
    labels = {label.task: label.value for label in sample.labels}
    ones_T, zeros_T = weights(spec, sample)
    numbers = (*ones_T.tolist(), *zeros_T.tolist(), *(labels.get(task, math.nan) for task in spec.task_names))
    known = {label.task for label in sample.replaces}
    first_T = tuple(sample.revision > 0 and task in labels and task not in known for task in spec.task_names)
    return Meaning(numbers, says_something_new(sample), first_T)


def _check_sample(spec: FeatureSpec, sample: Sample) -> None:
    if not 0.0 < sample.keep_rate <= 1.0:
        raise UnusableSample(MALFORMED, f"keep_rate {sample.keep_rate} of item {sample.item_id!r} is not in (0, 1]")
    for labels in (sample.labels, sample.replaces):
        for label in labels:
            if label.task not in spec.task_names:
                raise UnusableSample(MALFORMED, f"label for task {label.task!r}, which the feature spec does not name")
            if not (math.isfinite(label.value) and 0.0 <= label.value <= 1.0):
                raise UnusableSample(MALFORMED, f"label {label.value} for task {label.task!r} is not in [0, 1]")
        if len({label.task for label in labels}) != len(labels):
            raise UnusableSample(MALFORMED, f"two labels for one task of item {sample.item_id!r}")
