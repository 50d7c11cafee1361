"""The samples of a recorded event: what the joiner would make of its exposure. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from tunemesh.samples.v1.sample_pb2 import Sample, SampleGroup, TaskLabel

from services.common.events.feedback_kinds import IMPRESSION
from services.common.platform.ids import sample_id
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.labels import keep_negative, labels_of_row, negative_labels
from services.common.ranker.states import Interaction

NUM_OTHERS = 99


def shown_beside(spec: FeatureSpec, rng: np.random.Generator, item_ids: Sequence[str], excluded: set[str]) -> list[str]:
    """Return the unanswered items of an event's exposure: drawn ones, or none where they have rows of their own (impressions)."""
    return [] if spec.reads_impressions else draw_others(rng, item_ids, excluded, NUM_OTHERS)


def draw_others(rng: np.random.Generator, item_ids: Sequence[str], excluded: set[str], count: int) -> list[str]:
    """Return up to `count` distinct items outside `excluded`, uniformly."""
    free = len(item_ids) - len(excluded)
    if free <= 2 * count:
        left = [item_id for item_id in item_ids if item_id not in excluded]
        return [left[position] for position in rng.permutation(len(left))[:count]]
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        for position in rng.integers(len(item_ids), size=count).tolist():
            if item_ids[position] not in excluded and len(drawn) < count:
                drawn[item_ids[position]] = None
    return list(drawn)


def kept_negatives(spec: FeatureSpec, others: Sequence[str], request_id: str) -> dict[int, int]:
    """Return of the unanswered items those that become samples: their place in `others`, and the sample's id."""
    ids = [sample_id(request_id, item_id, 0) for item_id in others]
    return {row: one for row, one in enumerate(ids) if keep_negative(one, spec.negatives.keep_rate)}


def group_of(
    spec: FeatureSpec, interaction: Interaction, others: Sequence[str], kept: Mapping[int, int], block: bytes, *, request_id: str
) -> SampleGroup:
    """Return the group of the chosen item and the kept others; `block` is their exposure block, in this order."""
    absent = [TaskLabel(task=task, value=value) for task, value in negative_labels(spec)]
    rate = spec.negatives.keep_rate
    negatives = [Sample(sample_id=one, item_id=others[row], labels=absent, keep_rate=rate) for row, one in kept.items()]
    return SampleGroup(
        request_id=request_id,
        user_id=interaction.user_id,
        exposed_at_ms=interaction.time_ms,
        schema_hash=spec.schema_hash,
        features_block=block,
        samples=[*sample_of(spec, interaction, request_id), *negatives],
    )


def sample_of(spec: FeatureSpec, interaction: Interaction, request_id: str) -> list[Sample]:
    """Return the sample of an act; of an impression the negative, if it is kept: one sample or none."""
    is_seen_only = interaction.kind == IMPRESSION.name
    revision = 0 if is_seen_only else 1
    identity = sample_id(request_id, interaction.item_id, revision)
    if is_seen_only and not keep_negative(identity, spec.negatives.keep_rate):
        return []
    return [
        Sample(
            sample_id=identity,
            item_id=interaction.item_id,
            revision=revision,
            labels=[TaskLabel(task=task, value=value) for task, value in labels_of_row(spec, interaction.kind, interaction.value)],
            keep_rate=spec.negatives.keep_rate if is_seen_only else 1.0,
            position=interaction.position,
        )
    ]
