from services.recommender.channels.similar import similar_items
from services.recommender.recall import Proposal


def test_similar_items_add_up_over_the_seeds_and_name_the_strongest_seed():
    found = similar_items([("s1", [("x", 2.0), ("y", 3.0)]), ("s2", [("x", 2.5), ("s1", 9.0)])], limit=5)
    assert found == [Proposal("x", "similar_to:s2"), Proposal("y", "similar_to:s1")]


def test_seeds_do_not_eat_up_the_limit_of_similar_items():
    found = similar_items([("s1", [("s2", 9.0), ("x", 1.0)]), ("s2", [("s1", 9.0)])], limit=1)
    assert [proposal.item_id for proposal in found] == ["x"]
