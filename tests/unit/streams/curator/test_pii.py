import re
import time

import pytest

from streams.curator.pii import kinds_in


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jane.doe+films@example.co.uk please", "email"),
        ("call +44 20 7946 0958", "phone"),
        ("call 0049 30 123456", "phone"),
        ("call (020) 7946 0958 today", "phone"),
        ("call 555-0123.", "phone"),
        ("my number is 2025550123", "phone"),
        ("my number is 202-555-0123", "phone"),
        ("my card is 4111 1111 1111 1111, exp. 10/30", "card"),
        ("card 378282246310005", "card"),
        ("4111 1111 1111 1111 12/27", "card"),
        ("2 4111 1111 1111 1111 please", "card"),
        ("4111111111111111 10/30", "card"),
        ("pay to GB82 WEST 1234 5698 7654 32 by Friday", "iban"),
        ("pay to de89370400440532013000", "iban"),
    ],
)
def test_personal_data_is_found_within_other_words(text, kind):
    assert kind in kinds_in(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Heat came out on 1995-12-15 and has 1,682 ratings.",
        "The years were 1994 1995 1996 1997.",
        "From 1939-1945 and 2001-2005.",
        "A late film costs 0.60 for each of 14 days.",
        "Order 4111 1111 1111 1112 is on its way",  # fails the check sum, and is too long to be dialled
        "GB83 WEST 1234 5698 7654 32x",
        "Use the code FILM20 at the counter @ noon",
        "request 0193a1b2-7c3d-7e4f-8a5b-6c7d8e9f0a1b",
        "3.141592653589793 and 1,000,000,000",
        "0000 0000 0000 0000 0",
    ],
)
def test_dates_years_counts_and_codes_are_no_personal_data(text):
    assert kinds_in(text) == frozenset()


def growth(check, part: str) -> float:
    """How many times longer a text takes that is four times as long: about 4 where time grows with length, 16 with its square."""

    def cost_s(length: int) -> float:
        text, costs = part * (length // len(part)), []
        for _ in range(5):
            began = time.thread_time()
            check(text)
            costs.append(time.thread_time() - began)
        return min(costs)

    return cost_s(8_000) / cost_s(2_000)


@pytest.mark.parametrize("part", ["1 ", "a.b@", "GB82 ", "4111-", "a", "1", "+1(", "1-2 ", "a.", "a@b."])
def test_a_long_text_takes_no_long_time(part):
    assert growth(kinds_in, part) < 9


def test_a_rule_that_tries_every_end_from_every_start_would_be_seen():
    assert growth(re.compile("(?:1 )+x").search, "1 ") > 9
