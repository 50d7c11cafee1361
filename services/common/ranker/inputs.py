"""From decoded features to the arrays that the network takes; the same code in training and in serving. numpy only.

Shapes: G users (one per sample group), B samples, L history length, U user features, F item features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.common.ranker.declared.row_keys import KeyedRows
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Features

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RankerInputs:
    """Sample groups side by side; ids still unresolved. Padded history has mask 0."""

    user_keys_G: Int64Array
    history_keys_GL: Int64Array
    history_values_GL: Float32Array
    history_mask_GL: Float32Array
    user_GU: Float32Array
    item_keys_B: Int64Array
    items_BF: Float32Array
    group_B: Int64Array
    keys: KeyedRows | None = None
    """Of the declared features that make rows of tables: a row a user, and a row a sample; None when the spec has none."""
    sequence_lengths: tuple[Int64Array, ...] = ()
    """By sequence of the spec int64 [G]: how many events a user has of it."""


def assemble(spec: FeatureSpec, groups: Sequence[tuple[Features, Int64Array]]) -> RankerInputs:
    """Put groups side by side; each is its features and the table keys of its items, row for row.

    Raises:
        ValueError: a group has another number of items than rows of features.
    """
    for features, keys_N in groups:
        if len(features) != len(keys_N):
            raise ValueError(f"{len(keys_N)} items, but {len(features)} rows of features")
    num_groups, length = len(groups), spec.history.length
    lengths_G = np.asarray([min(length, len(features.history_keys_L)) for features, _ in groups], dtype=np.int64)
    filled_GL = np.arange(length) < lengths_G[:, None]
    history_keys_GL = np.zeros((num_groups, length), dtype=np.int64)
    history_values_GL = np.zeros((num_groups, length), dtype=np.float32)
    # Row by row from the left, as the histories stand one behind the other.
    history_keys_GL[filled_GL] = np.concatenate([features.history_keys_L[:length] for features, _ in groups])
    history_values_GL[filled_GL] = np.concatenate([features.history_values_L[:length] for features, _ in groups])
    sizes = [len(keys_N) for _, keys_N in groups]
    keyed = [features.keys for features, _ in groups if features.keys is not None]
    keys = KeyedRows.joined(keyed) if keyed else None
    return RankerInputs(
        user_keys_G=np.asarray([features.user_key for features, _ in groups], dtype=np.int64),
        history_keys_GL=history_keys_GL,
        history_values_GL=history_values_GL,
        history_mask_GL=filled_GL.astype(np.float32),
        user_GU=np.concatenate([features.user_U for features, _ in groups]).astype(np.float32).reshape(num_groups, len(spec.user_columns)),
        item_keys_B=np.concatenate([keys_N for _, keys_N in groups]),
        items_BF=np.concatenate([features.items_NF for features, _ in groups]).astype(np.float32),
        group_B=np.repeat(np.arange(num_groups), sizes),
        keys=keys,
        sequence_lengths=() if keys is None else tuple(one.lengths_G for one in keys.sequences),
    )
