import pytest

from services.common.platform.errors import ConfigurationError
from services.recommender.rules import Rules, diversified


def test_a_rules_file_is_read():
    raw = {"format": 1, "exclude": {"items": ["1"], "categories": ["Horror"]}, "diversity": {"max_per_category": 2, "within_top": 5}}
    rules = Rules.parse(raw, source="x")
    assert rules == Rules(exclude_items=frozenset({"1"}), exclude_categories=frozenset({"Horror"}), max_per_category=2, within_top=5)


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({"format": 1, "exclud": {}}, "exclud"),
        ({"format": 2}, "format"),
        ({}, "format"),
        (None, r"\(top\)"),
        ({"format": 1, "diversity": {"max_per_category": 0, "within_top": 5}}, "diversity.max_per_category"),
        ({"format": 1, "exclude": {"items": [5]}}, "exclude.items.0"),
    ],
)
def test_a_wrong_rules_file_is_refused_with_the_key(raw, key):
    with pytest.raises(ConfigurationError, match=rf"^rules my\.yaml: key {key}: "):
        Rules.parse(raw, source="my.yaml")


def test_an_item_is_excluded_by_its_id_or_by_any_of_its_categories():
    rules = Rules(exclude_items=frozenset({"1"}), exclude_categories=frozenset({"Horror"}))
    assert not rules.allows("1", ())
    assert not rules.allows("2", ("Drama", "Horror"))
    assert rules.allows("2", ("Drama",))


def test_items_over_the_category_limit_move_below_the_top_in_their_old_order():
    categories = [("D",), ("D",), ("D",), ("C",), ("D", "C"), ("A",)]
    assert diversified(range(6), categories, Rules(max_per_category=1, within_top=3)) == [0, 3, 5, 1, 2, 4]


def test_an_item_counts_for_each_of_its_categories():
    assert diversified([0, 1, 2], [("D", "C"), ("C",), ("A",)], Rules(max_per_category=1, within_top=2)) == [0, 2, 1]


def test_nothing_is_lost_when_too_few_items_can_fill_the_top():
    assert diversified([2, 0, 1], [("D",)] * 3, Rules(max_per_category=1, within_top=3)) == [2, 0, 1]


def test_without_a_limit_the_order_stays():
    assert diversified([2, 0, 1], [("D",)] * 3, Rules()) == [2, 0, 1]
