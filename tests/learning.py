"""Small made-up histories for tests of the learner; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tunemesh.samples.v1.sample_pb2 import Sample, SampleGroup, TaskLabel

from services.common.platform.ids import sample_id
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.states import Interaction
from services.trainer.attribute_history import ALWAYS_MS, AttributeHistory, Versions
from services.trainer.batch import FeatureStates, replay
from services.trainer.replay_order import BatchConfig, replay_order

SPEC = FeatureSpec.load("model_repo/ranker/feature_spec.yaml")
ITEMS = [str(item) for item in range(150)]
CATEGORIES = {item: (("even", "odd")[int(item) % 2],) for item in ITEMS}


def interactions(count: int, *, seed: int = 0, num_users: int = 20) -> list[Interaction]:
    """Users choose popular items (low numbers) and like those of their own parity."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        user = int(rng.integers(num_users))
        item = int(min(149, rng.exponential(20)))
        stars = 5.0 if (item + user) % 2 == 0 else 2.0
        found.append(Interaction(f"u{user}", str(item), "rating", stars, index * 2000))
    return found


# Features that make rows of tables: of the user, of the item (none, one or several words), of both, and of the request; two share a table.
KEYED: list[dict[str, Any]] = [
    {"id_feature": {"feature_name": "city", "expression": "user:city", "embedding_dim": 8, "embedding_name": "places"}},
    {"id_feature": {"feature_name": "tags", "expression": "item:tags", "embedding_dim": 4, "pooling": "mean"}},
    {"combo_feature": {"feature_name": "both", "expression": ["user:city", "item:tags"], "embedding_dim": 6, "filter_freq": 2}},
    {"raw_feature": {"feature_name": "hour", "expression": "context:hour", "boundaries": [6, 12, 18], "embedding_dim": 4}},
    {"id_feature": {"feature_name": "origin", "expression": "item:origin", "embedding_dim": 8, "embedding_name": "places"}},
]


# A sequence whose parts are of the item (none, one or several words; a table of its own or that of a feature above), and of the event.
SEQUENCE: dict[str, Any] = {
    "sequence_feature": {
        "sequence_name": "latest",
        "sequence_length": 6,
        "features": [
            {"id_feature": {"feature_name": "tags", "expression": "item:tags", "embedding_dim": 4, "pooling": "mean"}},
            {"raw_feature": {"feature_name": "age", "expression": "sequence:age", "boundaries": [60, 3600], "embedding_dim": 4}},
            {"id_feature": {"feature_name": "origin", "expression": "item:origin", "embedding_dim": 8, "embedding_name": "places"}},
            {"id_feature": {"feature_name": "item", "expression": "sequence:item_id", "embedding_dim": 6}},
        ],
    }
}


def with_network(network: object) -> FeatureSpec:
    """Return the tests' spec with another network."""
    return FeatureSpec.parse(SPEC.model_dump(mode="json") | {"network": network})


def with_features(features: Sequence[object], **changes: object) -> FeatureSpec:
    """Return the tests' spec with declared features."""
    return FeatureSpec.parse(SPEC.model_dump(mode="json") | {"format": 2, "features": list(features)} | changes)


def attributes_of(spec: FeatureSpec) -> AttributeHistory:
    """Return attributes that KEYED reads, of the users and items of `interactions`."""
    users = {f"u{user}": {"city": f"c{user % 7}"} for user in range(20) if user % 5}
    items = {item: {"tags": [f"t{int(item) % 9}", f"t{int(item) % 4}"][: int(item) % 3], "origin": f"c{int(item) % 11}"} for item in ITEMS}
    return AttributeHistory(spec.plan, *(Versions((name, ALWAYS_MS, of) for name, of in side.items()) for side in (users, items)))


def groups(count: int, *, seed: int = 0, spec: FeatureSpec = SPEC) -> list[SampleGroup]:
    """Return sample groups of a replay of `interactions`."""
    config = BatchConfig(feature_lag_s=0.0)
    states = FeatureStates(spec, CATEGORIES, attributes_of(spec) if spec.features else None)
    acts = [replace(act, context={"hour": index % 24}) for index, act in enumerate(interactions(count, seed=seed))]
    return list(replay(spec, replay_order(acts, config), ITEMS, states, config, 0))


def group_of(user_id: str, rows: Sequence[tuple[Sample, int]], block: bytes, request_id: str = "r") -> SampleGroup:
    """Return a group of the samples, each with the row of the block that is its item's."""
    return SampleGroup(
        request_id=request_id,
        user_id=user_id,
        schema_hash=SPEC.schema_hash,
        features_block=exposure_block.select(block, [row for _, row in rows]),
        samples=[sample for sample, _ in rows],
    )


def sample(
    item_id: str, interact: float, *, revision: int, keep_rate: float = 1.0, retracts: bool = False, request_id: str = "r"
) -> Sample:
    """Return a sample that speaks about interact alone."""
    return Sample(
        sample_id=sample_id(request_id, item_id, revision),
        item_id=item_id,
        revision=revision,
        labels=[TaskLabel(task="interact", value=interact)],
        keep_rate=keep_rate,
        retracts_negative=retracts,
    )
