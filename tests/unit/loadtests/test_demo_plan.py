from loadtests.demo.plan import GAP_CAP_S, sessions, speed_for
from loadtests.movielens import Rating


def rating(index: int, user: str, time_s: int) -> Rating:
    return Rating(index, user, f"film{index}", 4.0, time_s)


def test_ratings_of_one_second_form_one_block():
    (session,) = sessions([rating(0, "a", 100), rating(1, "a", 100), rating(2, "a", 103)])
    assert [[r.index for r in block.ratings] for block in session.blocks] == [[0, 1], [2]]


def test_gaps_are_the_users_own_and_capped():
    ratings = [rating(0, "a", 100), rating(1, "b", 102), rating(2, "a", 105), rating(3, "a", 99_999)]
    first, second = sessions(ratings)
    assert [block.gap_s for block in first.blocks] == [0.0, 5.0, GAP_CAP_S]
    assert [block.gap_s for block in second.blocks] == [0.0]


def test_users_come_in_the_order_of_their_first_rating_and_lose_nothing():
    ratings = [rating(index, user, index) for index, user in enumerate("bcabca")]
    played = sessions(ratings)
    assert [session.user_id for session in played] == ["b", "c", "a"]
    assert sorted(r.index for s in played for block in s.blocks for r in block.ratings) == list(range(6))


def test_speed_makes_the_wanted_rate():
    played = sessions([rating(0, "a", 0), rating(1, "a", 10)])
    # One user: 10 s between the two ratings and one whole gap for the next user, so 2 ratings in 30 s at speed 1.
    assert speed_for(played, active=1, events_per_s=2 / 30 * 5) == 5.0


def test_a_replay_is_never_slower_than_the_original():
    assert speed_for(sessions([rating(0, "a", 0)]), active=100, events_per_s=1e-6) == 1.0
