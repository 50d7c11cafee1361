from services.common.ranker.states import GlobalState, Interaction
from services.recommender.recall import Proposal, merged, popular_now
from tests.recommender_fakes import SPEC


def channel(reason: str, *item_ids: str) -> list[Proposal]:
    return [Proposal(item_id, reason) for item_id in item_ids]


def everything(item_id: str) -> bool:
    return True


def test_channels_take_turns_and_exhausted_ones_drop_out():
    found = merged([channel("a", "1", "2", "3"), channel("b", "4"), channel("c", "5", "6")], limit=10, allowed=everything)
    assert list(found) == ["1", "4", "5", "2", "6", "3"]


def test_an_item_of_two_channels_is_found_once_with_both_reasons_and_costs_neither_its_turn():
    found = merged([channel("a", "1", "2"), channel("b", "1", "3")], limit=10, allowed=everything)
    assert found == {"1": ["a", "b"], "3": ["b"], "2": ["a"]}


def test_the_merge_stops_at_the_limit():
    assert list(merged([channel("a", "1", "2"), channel("b", "3", "4")], limit=3, allowed=everything)) == ["1", "3", "2"]


def test_items_that_are_not_allowed_are_skipped_without_losing_the_turn():
    assert list(merged([channel("a", "1", "2"), channel("b", "3")], limit=2, allowed=lambda item_id: item_id != "1")) == ["2", "3"]


def test_popular_items_of_the_base_fade_with_every_live_act():
    live = GlobalState()
    for _ in range(100):
        live.apply(SPEC, Interaction("u", "x", "rating", 3.0, 0), [], -1)
    lists = [[("old", 8.0), ("both", 4.0)], [("new", 3.0), ("both", 1.0)], []]
    assert popular_now(lists, [None, None, None], 100.0) == [("old", 8.0), ("both", 5.0), ("new", 3.0)]
    assert popular_now(lists, [GlobalState(), live, None], 100.0) == [("old", 4.0), ("both", 3.0), ("new", 3.0)]
