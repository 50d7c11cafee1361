import pytest

from services.common.events.dead_letters import dead_letter
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
