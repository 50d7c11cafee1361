import math

import pytest
from tunemesh.events.v1 import feedback_pb2

from services.common.events.envelope import MalformedRecord
from services.common.events.feedback import Feedback, check_answer
from services.common.events.wire.feedback import feedback_message, feedback_of, parse_feedback, read_feedback

NOW_MS = 1_700_000_000_000
CLICK = Feedback(
    feedback_id="f1",
    request_id="r1",
    user_id="u1",
    item_id="b",
    kind="rating",
    value=4.0,
    accepted_at_ms=NOW_MS - 5,
    original_time_ms=9,
    traceparent="00-a-b-01",
)
HEADERS = [("traceparent", b"00-a-b-01")]


def value(**changes) -> bytes:
    message = feedback_message(CLICK)
    message.MergeFrom(feedback_pb2.Feedback(**{name: given for name, given in changes.items() if given}))
    for name, given in changes.items():
        if not given:
            message.ClearField(name)
    return message.SerializeToString()


def test_feedback_is_read_as_it_was_written() -> None:
    assert read_feedback(value(), HEADERS, NOW_MS) == CLICK
    comment = Feedback(feedback_id="f", request_id="r", user_id="u", item_id="", kind="comment", value=0, accepted_at_ms=1, text="wrong")
    assert feedback_of(feedback_message(comment)) == comment


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"feedback_id": ""}, "feedback_id: it is empty"),
        ({"request_id": ""}, "request_id: it is empty"),
        ({"user_id": "ü" * 65}, "user_id: it has 130 bytes"),
        ({"item_id": "x" * 129}, "item_id: it has 129 bytes"),
        ({"item_id": ""}, "item_id: it is empty"),
        ({"accepted_at_ms": 0}, "accepted_at_ms: 0 is not a time"),
        ({"accepted_at_ms": NOW_MS + 3_600_000}, "accepted_at_ms: it is 3600000 ms in the future"),
        ({"value": math.inf}, "value: inf is not finite"),
        ({"value": -math.inf}, "value: -inf is not finite"),
    ],
)
def test_feedback_that_breaks_the_contract_is_malformed_and_parsed_all_the_same(changes, said) -> None:
    with pytest.raises(MalformedRecord, match=said):
        read_feedback(value(**changes), HEADERS, NOW_MS)
    assert parse_feedback(value(**changes), HEADERS).kind == "rating"


@pytest.mark.parametrize("raw", [None, b"\xff\xff"])
def test_what_does_not_parse_is_malformed(raw) -> None:
    for read in (lambda: read_feedback(raw, None, NOW_MS), lambda: parse_feedback(raw, None)):
        with pytest.raises(MalformedRecord):
            read()


def test_feedback_about_an_answer_needs_no_item() -> None:
    feedback = read_feedback(value(kind="demonstration", item_id="", text="In 1995."), HEADERS, NOW_MS)
    assert feedback.is_about_answer
    assert (feedback.kind, feedback.item_id, feedback.text) == ("demonstration", "", "In 1995.")


def test_a_null_is_no_zero() -> None:
    """A Kafka Connect source writes every column, also those that are null."""

    def read(kind: str, item: str, given: str) -> Feedback:
        fields = (
            f'"feedback_id": "f", "request_id": "r", "user_id": "u", "kind": "{kind}", "item_id": "{item}", "accepted_at_ms": "{NOW_MS}"'
        )
        return read_feedback(f"{{{fields}{given}}}".encode(), [("content-type", b"application/json")], NOW_MS)

    assert math.isnan(read("rating", "i", ', "value": null').value)
    assert math.isnan(read("click", "i", ', "value": null').value)
    assert read("rating", "i", ', "value": 0').value == read("rating", "i", "").value == 0.0
    for kind, says in (("boolean", "nan is neither 0 nor 1"), ("score", "nan is not within 0 and 1")):
        with pytest.raises(MalformedRecord, match=says):
            check_answer(read(kind, "", ', "value": null'), MalformedRecord)
