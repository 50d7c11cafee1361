"""1,200 random lists of declared features over random attributes."""

from __future__ import annotations

import pytest

from tests.fuzz.declared_features import compare_ways

pytestmark = pytest.mark.deep


def test_batch_request_and_stream_give_the_same_bits_over_1200_random_specs() -> None:
    compared = [compare_ways(seed) for seed in range(1_000, 2_200)]
    # Not over nothing: most lists make numbers, and many make keys.
    assert sum(numbers > 0 for numbers, _ in compared) > 800
    assert sum(keys > 0 for _, keys in compared) > 500
