from services.common.ranker.states import GlobalState, Interaction
from services.recommender.recall import Proposal, fresh_items, merged, popular_now, similar_items
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


def test_similar_items_add_up_over_the_seeds_and_name_the_strongest_seed():
    found = similar_items([("s1", [("x", 2.0), ("y", 3.0)]), ("s2", [("x", 2.5), ("s1", 9.0)])], limit=5)
    assert found == [Proposal("x", "similar_to:s2"), Proposal("y", "similar_to:s1")]


def test_seeds_do_not_eat_up_the_limit_of_similar_items():
    found = similar_items([("s1", [("s2", 9.0), ("x", 1.0)]), ("s2", [("s1", 9.0)])], limit=1)
    assert [proposal.item_id for proposal in found] == ["x"]


def test_popular_items_of_the_base_fade_with_every_live_act():
    live = GlobalState()
    for _ in range(100):
        live.apply(SPEC, Interaction("u", "x", "rating", 3.0, 0), [], -1)
    lists = [[("old", 8.0), ("both", 4.0)], [("new", 3.0), ("both", 1.0)], []]
    assert popular_now(lists, [None, None, None], 100.0) == [("old", 8.0), ("both", 5.0), ("new", 3.0)]
    assert popular_now(lists, [GlobalState(), live, None], 100.0) == [("old", 4.0), ("both", 3.0), ("new", 3.0)]


def test_every_new_item_is_offered_to_somebody_and_a_user_always_gets_the_same():
    newest = [str(number) for number in range(10)]
    offered = {proposal.item_id for user in range(200) for proposal in fresh_items(newest, str(user), limit=2)}
    assert offered == set(newest)
    assert fresh_items(newest, "u", limit=2) == fresh_items(newest, "u", limit=2)


def test_fresh_items_of_an_empty_catalogue_are_none_and_of_a_small_one_all_once():
    assert fresh_items([], "u", limit=2) == []
    assert sorted(proposal.item_id for proposal in fresh_items(["a", "b"], "u", limit=5)) == ["a", "b"]
