from services.recommender.channels.fresh import fresh_items


def test_every_new_item_is_offered_to_somebody_and_a_user_always_gets_the_same():
    newest = [str(number) for number in range(10)]
    offered = {proposal.item_id for user in range(200) for proposal in fresh_items(newest, str(user), limit=2)}
    assert offered == set(newest)
    assert fresh_items(newest, "u", limit=2) == fresh_items(newest, "u", limit=2)


def test_fresh_items_of_an_empty_catalogue_are_none_and_of_a_small_one_all_once():
    assert fresh_items([], "u", limit=2) == []
    assert sorted(proposal.item_id for proposal in fresh_items(["a", "b"], "u", limit=5)) == ["a", "b"]
