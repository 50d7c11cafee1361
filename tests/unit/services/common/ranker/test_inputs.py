"""Putting groups side by side, against doing it group by group."""

from __future__ import annotations

import numpy as np
import pytest

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Features
from services.common.ranker.inputs import assemble

SPEC = FeatureSpec.load("model_repo/ranker/feature_spec.yaml")


def some_group(rng: np.random.Generator) -> tuple[Features, np.ndarray]:
    """Return a group whose history is empty, short, full or longer than the spec's."""
    num_items, num_history = int(rng.integers(1, 20)), int(rng.integers(0, 2 * SPEC.history.length))
    features = Features(
        user_key=int(rng.integers(-(2**63), 2**63 - 1)),
        history_keys_L=rng.integers(-(2**63), 2**63 - 1, num_history),
        history_values_L=rng.random(num_history).astype(np.float16),
        user_U=rng.normal(size=len(SPEC.user_columns)).astype(np.float16),
        items_NF=rng.normal(size=(num_items, len(SPEC.item_columns))).astype(np.float16),
    )
    return features, rng.integers(-(2**63), 2**63 - 1, num_items)


@pytest.mark.parametrize("seed", range(20))
def test_every_group_stands_where_its_turn_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [some_group(rng) for _ in range(int(rng.integers(1, 20)))]
    inputs = assemble(SPEC, groups)
    length, start = SPEC.history.length, 0
    for row, (features, keys_N) in enumerate(groups):
        used, end = min(length, len(features.history_keys_L)), start + len(keys_N)
        assert inputs.user_keys_G[row] == features.user_key
        np.testing.assert_array_equal(inputs.history_keys_GL[row], [*features.history_keys_L[:used], *[0] * (length - used)])
        np.testing.assert_array_equal(inputs.history_values_GL[row], [*features.history_values_L[:used], *[0] * (length - used)])
        np.testing.assert_array_equal(inputs.history_mask_GL[row], [*[1] * used, *[0] * (length - used)])
        np.testing.assert_array_equal(inputs.user_GU[row], features.user_U)
        np.testing.assert_array_equal(inputs.item_keys_B[start:end], keys_N)
        np.testing.assert_array_equal(inputs.items_BF[start:end], features.items_NF)
        np.testing.assert_array_equal(inputs.group_B[start:end], row)
        start = end
    assert len(inputs.item_keys_B) == len(inputs.group_B) == len(inputs.items_BF) == start
    floats = (inputs.history_values_GL, inputs.history_mask_GL, inputs.user_GU, inputs.items_BF)
    assert {part.dtype.name for part in floats} == {"float32"}


def test_items_and_rows_of_features_must_be_as_many() -> None:
    features, keys_N = some_group(np.random.default_rng(0))
    with pytest.raises(ValueError, match="rows of features"):
        assemble(SPEC, [(features, np.append(keys_N, 1))])
