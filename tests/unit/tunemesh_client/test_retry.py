"""When a call is tried again."""

import pytest

from tunemesh_client.errors import InvalidRequest, Overloaded, Unavailable
from tunemesh_client.retry import Attempts, RetryPolicy

AWAY = Unavailable("down")


def longest(_: float, high: float) -> float:
    return high


def shortest(low: float, _: float) -> float:
    return low


def pauses(policy: RetryPolicy, *, deadline_s: float = 1e6, number: int = 8) -> list[float | None]:
    attempts = Attempts(policy, deadline_s, now_s=0.0)
    found: list[float | None] = []
    for _ in range(number):
        attempts.begin(0.0)
        found.append(attempts.pause_s(AWAY, 0.0, longest))
    return found


def test_pauses_double_up_to_the_longest_and_end_with_the_number_of_retries() -> None:
    policy = RetryPolicy(retries=5, first_pause_s=0.1, max_pause_s=1.0)
    assert pauses(policy) == [0.1, 0.2, 0.4, 0.8, 1.0, None, None, None]


def test_each_pause_is_between_half_and_all_of_it() -> None:
    attempts = Attempts(RetryPolicy(first_pause_s=0.4), 100.0, now_s=0.0)
    attempts.begin(0.0)
    assert attempts.pause_s(AWAY, 0.0, shortest) == 0.2
    assert attempts.pause_s(AWAY, 0.0, longest) == 0.4


def test_without_retries_the_first_failure_is_the_answer() -> None:
    assert pauses(RetryPolicy(retries=0), number=1) == [None]


def test_without_a_number_of_retries_only_the_deadline_ends_them() -> None:
    assert None not in pauses(RetryPolicy(retries=None), number=2_000)


def test_what_a_retry_does_not_help_is_never_tried_again() -> None:
    attempts = Attempts(RetryPolicy(retries=None), 100.0, now_s=0.0)
    attempts.begin(0.0)
    assert attempts.pause_s(InvalidRequest("user_id"), 0.0, longest) is None


def test_no_pause_goes_beyond_the_deadline() -> None:
    attempts = Attempts(RetryPolicy(first_pause_s=0.5), 10.0, now_s=100.0)
    attempts.begin(100.0)
    assert attempts.pause_s(AWAY, 109.4, longest) == 0.5
    assert attempts.pause_s(AWAY, 109.5, longest) is None
    assert attempts.pause_s(AWAY, 120.0, longest) is None


def test_the_servers_wish_is_the_shortest_pause() -> None:
    attempts = Attempts(RetryPolicy(first_pause_s=0.1, max_pause_s=0.1), 10.0, now_s=0.0)
    attempts.begin(0.0)
    assert attempts.pause_s(Overloaded("full", retry_after_s=3.0), 0.0, longest) == 3.0
    assert attempts.pause_s(Overloaded("full", retry_after_s=0.01), 0.0, longest) == 0.1
    assert attempts.pause_s(Overloaded("full", retry_after_s=11.0), 0.0, longest) is None


def test_an_attempt_may_take_what_is_left_or_its_own_limit() -> None:
    attempts = Attempts(RetryPolicy(attempt_timeout_s=3.0), 10.0, now_s=0.0)
    assert [attempts.begin(now_s) for now_s in (0.0, 6.0, 8.0)] == [3.0, 3.0, 2.0]
    assert 0.0 < attempts.begin(11.0) < 0.01
    assert attempts.number == 4
    assert Attempts(RetryPolicy(), 10.0, now_s=5.0).begin(6.0) == 9.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"retries": -1}, "retries: -1 is negative"),
        ({"first_pause_s": 0.0}, "first_pause_s: 0.0"),
        ({"first_pause_s": 3.0, "max_pause_s": 2.0}, "first_pause_s: 3.0"),
        ({"max_pause_s": float("inf")}, "first_pause_s"),
        ({"attempt_timeout_s": 0.0}, "attempt_timeout_s: 0.0"),
        ({"attempt_timeout_s": float("nan")}, "attempt_timeout_s: nan"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        RetryPolicy(**fields)
