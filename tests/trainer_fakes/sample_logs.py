"""Samples and whole sample logs, as a joiner writes them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tunemesh.samples.v1.sample_pb2 import Sample, SampleGroup, SampleRecord, TaskLabel, Tick

from services.common.platform.ids import entity_key, sample_id
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Features

SPEC = FeatureSpec.load(Path(__file__).parents[2] / "model_repo" / "ranker" / "feature_spec.yaml")


def block(user_id: str, num_items: int, seed: int = 0) -> bytes:
    source = np.random.default_rng(seed)
    features = Features(
        user_key=entity_key(user_id),
        history_keys_L=source.integers(0, 50, 3),
        history_values_L=source.random(3).astype(np.float16),
        user_U=source.random(len(SPEC.user_columns)).astype(np.float16),
        items_NF=source.random((num_items, len(SPEC.item_columns))).astype(np.float16),
    )
    return exposure_block.encode(features, SPEC.schema_hash)


def group(
    request: int, user_id: str, item_ids: Sequence[str], *, positive: bool, seed: int = 0, exposure_offset: int | None = None
) -> SampleGroup:
    labels = [TaskLabel(task="interact", value=float(positive))] + ([TaskLabel(task="like", value=float(request % 2))] if positive else [])
    revision = 1 if positive else 0
    samples = [
        Sample(
            sample_id=sample_id(f"r{request}", item_id, revision),
            item_id=item_id,
            revision=revision,
            labels=labels,
            keep_rate=1.0 if positive else SPEC.negatives.keep_rate,
            accepted_at_ms=1_000 if positive else 0,
        )
        for item_id in item_ids
    ]
    return SampleGroup(
        request_id=f"r{request}",
        user_id=user_id,
        schema_hash=SPEC.schema_hash,
        features_block=block(user_id, len(item_ids), seed),
        samples=samples,
        exposure_offset=exposure_offset,
    )


def sample_log(seed: int, *, num_partitions: int = 2, num_ticks: int = 16, groups_per_tick: int = 4) -> list[list[SampleRecord]]:
    """Positives, negatives, ticks, and now and then a crashed joiner that repeats everything about exposures that are not done."""
    source = random.Random(seed)
    logs: list[list[SampleRecord]] = [[] for _ in range(num_partitions)]
    # Per partition: where its exposures ended at each tick; those before the last two ticks are done.
    ends: list[list[int]] = [[0, 0, 0] for _ in range(num_partitions)]
    request = 0
    for tick in range(100, 100 + num_ticks):
        for partition, log in enumerate(logs):
            for _ in range(source.randrange(2 * groups_per_tick)):
                request += 1
                offset = ends[partition][-1]
                ends[partition][-1] += 1
                # Users and items come and go, so that rows are evicted and created again.
                user, first = f"u{tick // 6}-{partition}-{source.randrange(4)}", tick // 3 * 3
                log.append(SampleRecord(group=group(request, user, [str(first)], positive=True, seed=request, exposure_offset=offset)))
                others = [str(first + k) for k in range(1, source.randrange(2, 6))]
                log.append(SampleRecord(group=group(request, user, others, positive=False, seed=request, exposure_offset=offset)))
            done = ends[partition][-3]
            if source.random() < 0.15:
                log.extend([record for record in log if record.WhichOneof("record") == "group" and record.group.exposure_offset >= done])
            log.append(SampleRecord(tick=Tick(tick=tick, watermark_ms=1_000 * tick, exposures_position=done)))
            ends[partition].append(ends[partition][-1])
    return logs
