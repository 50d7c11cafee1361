"""What is read of a group into columns, against reading its message field by field."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from tunemesh.samples.v1.sample_pb2 import Sample, SampleGroup, TaskLabel

from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.batch import FeatureStates
from services.trainer.dedup import NO_OFFSET
from services.trainer.group_columns import UnusableSample, all_finite, columns_of, loss_weights
from tests.learning import CATEGORIES, ITEMS, SPEC

BLOCK = exposure_block.encode(FeatureStates(SPEC, CATEGORIES).features("u", ITEMS[:20]), SPEC.schema_hash)


def some_labels(source: random.Random) -> list[TaskLabel]:
    return [
        TaskLabel(task=task, value=source.choice([0.0, 1.0, 0.25, source.random()])) for task in SPEC.task_names if source.random() < 0.6
    ]


def some_sample(source: random.Random) -> Sample:
    revised = source.random() < 0.5
    labels = some_labels(source)
    return Sample(
        sample_id=source.getrandbits(64),
        item_id=source.choice(ITEMS),
        revision=source.randrange(1, 4) if revised else 0,
        labels=labels,
        keep_rate=source.choice([1.0, 0.16, 0.5]),
        retracts_negative=revised and source.random() < 0.3,
        accepted_at_ms=source.randrange(2) * 1_700_000_000_000,
        replaces=(labels if source.random() < 0.3 else some_labels(source)) if revised and source.random() < 0.7 else [],
    )


def some_group(source: random.Random) -> SampleGroup:
    samples = [some_sample(source) for _ in range(source.randrange(1, 20))]
    group = SampleGroup(
        request_id=str(source.random()),
        user_id="u",
        exposed_at_ms=source.randrange(1 << 40),
        schema_hash=SPEC.schema_hash,
        features_block=exposure_block.select(BLOCK, range(len(samples))),
        samples=samples,
    )
    if source.random() < 0.5:
        group.exposure_offset = source.randrange(1 << 40)
    return group


def plain_targets(spec: FeatureSpec, groups: list[SampleGroup]) -> tuple[np.ndarray, np.ndarray]:
    """The weights of the losses, sample by sample and label by label."""
    column = {name: index for index, name in enumerate(spec.task_names)}
    unanswered = [index for index, task in enumerate(spec.tasks) if task.unanswered is not None]
    rate, samples = spec.negatives.keep_rate, [sample for group in groups for sample in group.samples]
    ones_BT, zeros_BT = np.zeros((2, len(samples), len(column)), np.float32)
    for row, sample in enumerate(samples):
        for sign, labels in ((1.0, sample.labels), (-1.0, sample.replaces)):
            for label in labels:
                at, zero_weight = column[label.task], rate if column[label.task] in unanswered else 1.0
                if sample.revision:
                    ones_BT[row, at] += sign * label.value
                    zeros_BT[row, at] += sign * (1.0 - label.value) * zero_weight
                elif sign > 0:
                    ones_BT[row, at] = rate / sample.keep_rate * label.value
                    zeros_BT[row, at] = rate / sample.keep_rate * (1.0 - label.value)
        if sample.retracts_negative:
            zeros_BT[row, unanswered] -= 1.0
    return ones_BT, zeros_BT


def is_news(sample: Sample) -> bool:
    labels, replaces = ({label.task: label.value for label in each} for each in (sample.labels, sample.replaces))
    return not replaces or sample.retracts_negative or labels != replaces


@pytest.mark.parametrize("seed", range(40))
def test_columns_say_what_the_messages_say(seed: int) -> None:
    source = random.Random(seed)
    messages = [some_group(source) for _ in range(20)]
    groups = [columns_of(SPEC, message) for message in messages]
    for group, message in zip(groups, messages, strict=True):
        assert (group.request_id, group.exposed_at_ms) == (message.request_id, message.exposed_at_ms)
        assert group.exposure_offset == (message.exposure_offset if message.HasField("exposure_offset") else NO_OFFSET)
        assert len(group) == len(message.samples)
        for name in ("sample_id", "item_id", "revision"):
            assert getattr(group, f"{name}s") == [getattr(sample, name) for sample in message.samples]
        assert group.accepted_at_ms == [sample.accepted_at_ms for sample in message.samples]
        assert [meaning.is_news for meaning in group.meanings] == [is_news(sample) for sample in message.samples]
        for meaning, sample in zip(group.meanings, message.samples, strict=True):
            assert len(meaning.labels_T) == len(SPEC.tasks)
            found = {task: label for task, label in zip(SPEC.task_names, meaning.labels_T, strict=True) if not math.isnan(label)}
            assert found == {label.task: label.value for label in sample.labels}
            first = {label.task for label in sample.labels if sample.revision} - {label.task for label in sample.replaces}
            assert meaning.first_T == tuple(task in first for task in SPEC.task_names)
    for found, expected in zip(loss_weights(groups), plain_targets(SPEC, messages), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("seed", range(20))
def test_a_part_of_a_group_is_what_a_message_of_that_part_would_be(seed: int) -> None:
    source = random.Random(seed)
    message = some_group(source)
    rows = [row for row in range(len(message.samples)) if source.random() < 0.5]
    part = SampleGroup()
    part.CopyFrom(message)
    del part.samples[:]
    part.samples.extend(message.samples[row] for row in rows)
    part.features_block = exposure_block.select(message.features_block, rows)
    found = columns_of(SPEC, message).only(rows)
    if not rows:
        assert found is None
        return
    expected = columns_of(SPEC, part)
    assert found is not None
    np.testing.assert_array_equal(found.features.items_NF, expected.features.items_NF)
    for name in ("sample_ids", "item_ids", "revisions", "accepted_at_ms", "meanings", "request_id", "exposure_offset"):
        assert repr(getattr(found, name)) == repr(getattr(expected, name))  # NaN equals nothing


def test_a_kind_of_sample_that_was_refused_once_is_refused_again_and_the_others_are_not() -> None:
    source = random.Random(3)
    for value in (math.nan, math.inf, -0.5, 1.5):
        group = some_group(source)
        group.samples[-1].labels.append(TaskLabel(task="like", value=value))
        for _ in range(3):
            with pytest.raises(UnusableSample):
                columns_of(SPEC, group)
            columns_of(SPEC, some_group(source))


def test_every_float16_is_known_to_be_finite_or_not() -> None:
    every = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    assert [all_finite(every[at : at + 1]) for at in range(1 << 16)] == np.isfinite(every).tolist()
