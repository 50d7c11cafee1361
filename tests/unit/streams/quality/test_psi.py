import math

import numpy as np
import pytest

from streams.quality.psi import FeatureReference, index


def test_the_index_is_that_of_the_definition() -> None:
    here, reference = np.array([30, 10]), np.array([10, 30])
    p, q = [31 / 42, 11 / 42], [11 / 42, 31 / 42]
    assert index(here, reference) == pytest.approx(sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True)))


def test_equal_histograms_have_index_zero_and_an_empty_bin_is_no_infinity() -> None:
    assert index(np.array([5, 5]), np.array([5, 5])) == 0.0
    assert 0 < index(np.array([10, 0]), np.array([0, 10])) < 10


def test_without_a_change_the_index_stays_below_chance_and_with_one_it_does_not() -> None:
    generator = np.random.default_rng(0)
    reference = FeatureReference.of(generator.normal(size=1200).astype(np.float32), 10)
    assert len(reference.counts) == 10
    same = [reference.psi(generator.normal(size=200).astype(np.float32)) for _ in range(300)]
    moved = [reference.psi(generator.normal(1.0, size=200).astype(np.float32)) for _ in range(300)]
    assert max(same) < reference.chance(200, 1200) < 0.25 < min(moved)


def test_with_few_requests_chance_is_larger_than_the_customary_limit() -> None:
    reference = FeatureReference.of(np.arange(100, dtype=np.float32), 10)
    assert reference.chance(20, 120) > 0.25 > reference.chance(400, 2400)


def test_a_feature_of_few_values_gets_a_bin_for_each_and_for_what_lies_outside() -> None:
    reference = FeatureReference.of(np.array([0, 0, 0, 1] * 100, np.float32), 10)
    assert reference.counts.tolist() == [0, 300, 100, 0]
    assert reference.psi(np.array([0, 0, 0, 1] * 10, np.float32)) < 0.1 < 1 < reference.psi(np.array([1] * 40, np.float32))


@pytest.mark.parametrize("value", [0.0, 2.5, -3.0])
def test_a_constant_feature_that_begins_to_move_is_seen(value: float) -> None:
    reference = FeatureReference.of(np.full(100, value, np.float32), 10)
    assert reference.psi(np.full(50, value, np.float32)) < 0.05
    assert reference.psi(np.full(50, value + 1, np.float32)) > 1
    assert reference.psi(np.full(50, value - 1, np.float32)) > 1


def test_a_reference_survives_json() -> None:
    reference = FeatureReference.of(np.random.default_rng(1).normal(size=500).astype(np.float32), 10)
    again = FeatureReference.from_json(reference.to_json())
    values = np.linspace(-2, 2, 50, dtype=np.float32)
    assert again.psi(values) == reference.psi(values)
    with pytest.raises(ValueError, match="one more count"):
        FeatureReference.from_json({"edges": [1.0], "counts": [1]})
