"""1,200 random lists of declared features over random attributes; 20,000 damaged lists, and as many damaged rows."""

from __future__ import annotations

import pytest

from tests.fuzz.declared_features import compare_ways
from tests.fuzz.declared_specs import fuzz_attributes, fuzz_specs

pytestmark = pytest.mark.deep


def test_batch_request_and_stream_give_the_same_bits_over_1200_random_specs() -> None:
    compared = [compare_ways(seed) for seed in range(1_000, 2_200)]
    # Not over nothing: most lists make numbers, and many make keys.
    assert sum(numbers > 0 for numbers, _, _ in compared) > 800
    assert sum(keys > 0 for _, keys, _ in compared) > 500
    assert sum(of_sequences > 20 for _, _, of_sequences in compared) > 150


def test_a_damaged_list_of_features_is_refused_in_one_line_or_its_plan_runs() -> None:
    outcomes = fuzz_specs(20_000, seed=500)
    assert outcomes["refused"] > 5_000 and outcomes["read"] > 300, outcomes


def test_a_damaged_attribute_is_named_and_the_others_make_finite_numbers() -> None:
    outcomes = fuzz_attributes(20_000, seed=501)
    assert outcomes["unfit"] > 2_000 and outcomes["fit"] > 2_000, outcomes
