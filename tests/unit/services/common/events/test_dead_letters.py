import itertools

import pytest

from services.common.events.dead_letters import dead_letter, dead_letter_headers
from services.common.events.limits import MAX_RECORD_BYTES


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"detail": "x" * 600_000, "value": b"v" * 600_000}, "…"),
        ({"value": b"v" * 600_000, "headers": [("content-type", b"h" * 300_000), ("ce_id", b"1")]}, "headers cut"),
        ({"key": b"k" * 300_000, "value": b"v" * 650_000}, "value cut from 650000 to 600000 bytes"),
        ({"value": b"v" * (MAX_RECORD_BYTES + 1)}, f"value cut from 900001 to {MAX_RECORD_BYTES} bytes"),
    ],
)
def test_no_part_of_a_record_makes_a_letter_that_a_broker_refuses(parts, said):
    letter = dead_letter(**{"topic": "t", "partition": 0, "offset": 1, "reason": "malformed", "detail": "bad"} | parts)
    assert len(letter.SerializeToString()) + len(parts.get("key", b"")) < 990_000
    assert said in letter.detail


def test_an_ordinary_record_is_carried_whole():
    letter = dead_letter(
        topic="t", partition=0, offset=1, reason="malformed", detail="bad", key=b"k", value=b"v", headers=[("a", b"1"), ("a", b"2")]
    )
    assert (letter.detail, letter.key, letter.value, dict(letter.headers)) == ("bad", b"k", b"v", {"a": b"2"})


def test_the_largest_letter_fits_a_broker_of_default_limits_whatever_its_record_brings() -> None:
    """1,048,576 bytes for the batch (and for the producer's request): value, key twice, headers."""
    junk = b"\xff" * 1_000_000
    many = [(f"{number:04x}", b"") for number in range(60_000)]
    kinds = ([("traceparent", junk[:32_700])], many, [*many[:3_000], ("traceparent", junk[:9_000])])
    for headers, key in itertools.product(kinds, (junk, junk[:16_384], b"k")):
        letter = dead_letter(
            topic="catalog.v1",
            partition=0,
            offset=2**62,
            reason="malformed",
            detail="\U0001f600" * 10**6,
            key=key,
            value=junk,
            headers=headers,
        )
        own = dead_letter_headers(letter, "/test")
        size = len(letter.key) + len(letter.SerializeToString()) + sum(len(name) + len(value) + 10 for name, value in own)
        assert size < 1_000_000


def test_a_letter_has_the_trace_of_its_record_in_the_fixed_form_or_none() -> None:
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for raw, expected in ((trace, trace), (b"01" + trace[2:] + b"-more", trace), (trace + b"x" * 9_000, None), (b"\xff" * 99, None)):
        letter = dead_letter(topic="t", partition=0, offset=1, reason="malformed", detail="", headers=[("traceparent", raw)])
        assert dict(dead_letter_headers(letter, "/test")).get("traceparent") == expected
