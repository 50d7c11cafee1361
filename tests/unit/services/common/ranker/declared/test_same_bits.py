"""A feature is the same bits in a batch, in a request and in the stream, whatever the spec and the data; 1,200 lists: tests/fuzz."""

from __future__ import annotations

import pytest

from tests.fuzz.declared_features import compare_ways


@pytest.mark.parametrize("seed", range(40))
def test_batch_request_and_stream_give_the_same_bits(seed: int) -> None:
    compare_ways(seed)


def test_among_these_lists_are_sequences_with_events() -> None:
    assert sum(compare_ways(seed)[2] > 20 for seed in range(40)) >= 5
