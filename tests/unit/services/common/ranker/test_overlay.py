from __future__ import annotations

from services.common.ranker.overlay import overlay

USERS = ["a", "a", "b", "a", "c", "c"]
TIMES = [0, 0, 5, 1000, 2000, 2003]


def test_every_event_comes_once_and_each_user_keeps_the_own_order() -> None:
    order = overlay(USERS, TIMES, active=2, gap_cap_s=20.0)
    assert sorted(place.event for place in order) == list(range(6))
    for user in "abc":
        own = [place.event for place in order if USERS[place.event] == user]
        assert own == sorted(own)


def test_a_block_is_what_a_user_did_in_one_second() -> None:
    block_of = {place.event: place.block for place in overlay(USERS, TIMES, active=2)}
    assert block_of[0] == block_of[1] != block_of[3]
    assert len(set(block_of.values())) == 5


def test_gaps_are_kept_but_capped() -> None:
    at = {place.event: place.at_s for place in overlay(USERS, TIMES, active=3, gap_cap_s=20.0)}
    assert at[3] - at[1] == 20.0
    assert at[5] - at[4] == 3.0


def test_no_more_users_are_active_than_asked_for() -> None:
    users = [str(user) for user in range(30) for _ in range(5)]
    times = [1000 * user + second for user in range(30) for second in range(5)]
    order = overlay(users, times, active=4)
    spans = [[place.at_s for place in order if users[place.event] == str(user)] for user in range(30)]
    for moment in {place.at_s for place in order}:
        assert sum(min(span) <= moment <= max(span) for span in spans) <= 4


def test_the_seed_alone_decides_the_order() -> None:
    assert overlay(USERS, TIMES, active=3, seed=1) == overlay(USERS, TIMES, active=3, seed=1)
