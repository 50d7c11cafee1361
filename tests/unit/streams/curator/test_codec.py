import pytest
from tunemesh.events.v1 import feedback_pb2

from services.common.events.envelope import MalformedRecord
from streams.curator.codec import read_feedback
from streams.partitioned.records import Record

NOW_MS = 1_700_000_000_000


def record(**changes) -> Record:
    fields = {"feedback_id": "f", "request_id": "r", "user_id": "u", "kind": "comment", "text": "wrong year", "accepted_at_ms": NOW_MS}
    return Record("feedback.v1", 0, 0, b"u", feedback_pb2.Feedback(**(fields | changes)).SerializeToString(), ())


def test_feedback_about_an_answer_is_read_with_its_text() -> None:
    read = read_feedback(record(), NOW_MS)
    assert read is not None and read.is_about_answer and read.text == "wrong year"


@pytest.mark.parametrize(
    ("changes", "said"), [({"request_id": ""}, "request_id: it is empty"), ({"text": " "}, "text: "), ({"accepted_at_ms": 0}, "not a time")]
)
def test_malformed_feedback_about_an_answer_is_the_curators_to_set_aside(changes, said) -> None:
    with pytest.raises(MalformedRecord, match=said):
        read_feedback(record(**changes), NOW_MS)


@pytest.mark.parametrize("changes", [{"request_id": ""}, {"value": float("inf")}, {"accepted_at_ms": NOW_MS + 3_600_000}])
def test_malformed_feedback_about_an_item_is_left_to_the_joiner(changes) -> None:
    about_item = {"kind": "rating", "item_id": "i", "text": ""}
    assert read_feedback(record(**about_item), NOW_MS) is not None
    assert read_feedback(record(**about_item, **changes), NOW_MS) is None


def test_what_does_not_parse_is_left_to_the_joiner() -> None:
    assert read_feedback(record()._replace(value=b"\xff\xff"), NOW_MS) is None
