from __future__ import annotations

from itertools import pairwise

from loadtests.movielens import CandidateDrawer, Rating, load_films, load_ratings, overlaid_sessions, split_by_time


def test_the_whole_of_movielens_loads_in_the_order_of_time() -> None:
    ratings, films = load_ratings(), load_films()
    assert (len(ratings), len(films)) == (100_000, 1_682)
    assert all(left.time_s <= right.time_s for left, right in pairwise(ratings))
    assert {rating.item_id for rating in ratings} <= films.keys()
    assert films["1"].categories == ("Animation", "Children's", "Comedy")


def test_the_split_cuts_no_block_and_loses_no_rating() -> None:
    ratings = [Rating(index, "u", str(index), 4.0, index // 4) for index in range(10)]
    base, live = split_by_time(ratings, 0.5)
    assert base + live == ratings
    assert base[-1].time_s < live[0].time_s


def test_overlaid_sessions_keep_every_rating() -> None:
    ratings = load_ratings()[:3_000]
    timed = overlaid_sessions(ratings, active=10)
    assert sorted(one.rating.index for one in timed) == list(range(3_000))
    assert all(left.at_s <= right.at_s for left, right in pairwise(timed))


def test_candidates_are_not_rated_yet_but_may_be_rated_later() -> None:
    drawer = CandidateDrawer([str(item) for item in range(120)], seed=3)
    first, later = Rating(0, "u", "5", 4.0, 0), Rating(1, "u", "6", 4.0, 9)
    assert drawer.draw(first) == drawer.draw(first)
    seen_later = 0
    for index in range(30):
        others = drawer.draw(Rating(index, "u", "5", 4.0, 0))
        assert len(others) == len(set(others)) == 100
        assert others.count("5") == 1
        seen_later += "6" in others
    assert seen_later > 0
    drawer.rated(first)
    assert all("5" not in drawer.draw(Rating(index, "u", later.item_id, 4.0, 9)) for index in range(30))
