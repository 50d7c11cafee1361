from __future__ import annotations

import pytest

from services.common.platform.ids import sample_id
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.labels import UnknownKind, ValueOutOfRange, keep_negative, labels_for, negative_labels, value_fault

SPEC = FeatureSpec.load("model_repo/ranker/feature_spec.yaml")


@pytest.mark.parametrize(("stars", "like"), [(3.0, 0.0), (4.0, 1.0), (5.0, 1.0)])
def test_a_rating_labels_interact_and_like(stars: float, like: float) -> None:
    assert labels_for(SPEC, "rating", stars) == (("interact", 1.0), ("like", like))


def test_a_click_says_nothing_about_like() -> None:
    assert labels_for(SPEC, "click", 1.0) == (("interact", 1.0),)


def test_an_unanswered_item_is_a_negative_of_interact_alone() -> None:
    assert negative_labels(SPEC) == (("interact", 0.0),)


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(UnknownKind, match="'thumb'"):
        labels_for(SPEC, "thumb", 1.0)


@pytest.mark.parametrize("stars", [0.0, 0.99, 5.01, 50.0, -3.0, float("inf")])
def test_a_value_outside_the_range_of_its_kind_gives_no_label(stars: float) -> None:
    with pytest.raises(ValueOutOfRange, match="outside the range of kind 'rating', 1 to 5"):
        labels_for(SPEC, "rating", stars)


def test_a_null_is_no_opinion_on_any_scale() -> None:
    raw = SPEC.model_dump(mode="json")
    raw["kinds"] |= {"score": {"value_range": [0, 10]}, "play": {}}
    raw["tasks"][1]["labels"] |= {"score": {"at_least": 5}, "play": {"at_least": 30}}
    spec = FeatureSpec.parse(raw)
    for kind in ("rating", "score", "play"):
        with pytest.raises(ValueOutOfRange, match="value: there is none"):
            labels_for(spec, kind, float("nan"))
    assert value_fault(spec, "score", 0.0) is value_fault(spec, "play", -1.0) is value_fault(spec, "click", float("nan")) is None


def test_only_kinds_with_a_range_have_one_to_break() -> None:
    assert [value_fault(SPEC, "rating", stars) for stars in (1.0, 4.5, 5.0)] == [None] * 3
    assert [value_fault(SPEC, kind, 1e9) for kind in ("click", "unknown")] == [None] * 2


def test_negatives_are_kept_at_the_rate_and_always_the_same_ones() -> None:
    ids = [sample_id("request", str(item), 0) for item in range(20_000)]
    kept = [keep_negative(one, 0.16) for one in ids]
    assert 0.15 < sum(kept) / len(kept) < 0.17
    assert kept == [keep_negative(one, 0.16) for one in ids]
    assert all(keep_negative(one, 1.0) for one in ids)


def test_a_negative_kept_at_a_low_rate_is_kept_at_every_higher_one() -> None:
    ids = [sample_id("request", str(item), 0) for item in range(2_000)]
    assert all(keep_negative(one, 0.5) for one in ids if keep_negative(one, 0.1))
