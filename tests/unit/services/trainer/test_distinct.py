"""De-duplication by hashing, against numpy's by sorting."""

from __future__ import annotations

import numpy as np
import pytest

from services.trainer.distinct import distinct


@pytest.mark.parametrize("seed", range(50))
def test_every_key_is_found_once_at_its_first_place(seed: int) -> None:
    rng = np.random.default_rng(seed)
    some = rng.integers(-(2**63), 2**63 - 1, int(rng.integers(1, 400)))
    keys = rng.choice(np.concatenate([some, [0, -1, 1, -(2**63), 2**63 - 1]]), int(rng.integers(0, 1_000)))
    ids, places = distinct(keys)
    assert ids.dtype == places.dtype == np.int64
    np.testing.assert_array_equal(ids[places], keys)
    first_at = np.sort(np.unique(keys, return_index=True)[1])
    np.testing.assert_array_equal(ids, keys[first_at])
