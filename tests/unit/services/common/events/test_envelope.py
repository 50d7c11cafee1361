import json

import pytest
from tunemesh.events.v1 import dead_letter_pb2, feedback_pb2
from tunemesh.events.v1.generation_pb2 import Generation

from services.common.events import dead_letter_reasons, dead_letters, envelope

FEEDBACK = feedback_pb2.Feedback(
    feedback_id="f1", request_id="r1", user_id="u1", item_id="42", kind="rating", value=4.5, accepted_at_ms=1_700_000_000_123
)


def test_headers_follow_the_cloudevents_binary_mode() -> None:
    headers = dict(
        envelope.headers_for(
            "tunemesh.events.v1.Feedback",
            "/test",
            event_id="f1",
            time_ms=1_700_000_000_123,
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
    )
    assert headers == {
        "ce_specversion": b"1.0",
        "ce_id": b"f1",
        "ce_type": b"tunemesh.events.v1.Feedback",
        "ce_source": b"/test",
        "ce_time": b"2023-11-14T22:13:20.123Z",
        "content-type": b"application/protobuf",
        "traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }


def test_headers_without_a_trace_have_no_traceparent() -> None:
    assert envelope.header(envelope.headers_for("t", "/s"), "traceparent") is None


def test_two_events_without_given_ids_get_different_ids() -> None:
    assert envelope.header(envelope.headers_for("t", "/s"), "ce_id") != envelope.header(envelope.headers_for("t", "/s"), "ce_id")


@pytest.mark.parametrize("headers", [None, [], [("content-type", b"application/x-protobuf")], envelope.headers_for("t", "/s")])
def test_a_protobuf_value_is_read_with_or_without_its_content_type(headers) -> None:
    assert envelope.parse_value(FEEDBACK.SerializeToString(), headers, feedback_pb2.Feedback) == FEEDBACK


@pytest.mark.parametrize("names", ["proto", "camel"])
@pytest.mark.parametrize("content_type", [b"application/json", b"application/json; charset=utf-8", b"Application/JSON"])
def test_a_json_value_is_read_with_both_forms_of_field_names(names, content_type) -> None:
    fields = {"feedback_id": "f1", "request_id": "r1", "user_id": "u1", "item_id": "42", "kind": "rating", "value": 4.5}
    fields["accepted_at_ms"] = 1_700_000_000_123
    if names == "camel":
        fields = {name.split("_")[0] + "".join(part.title() for part in name.split("_")[1:]): value for name, value in fields.items()}
    raw = json.dumps({**fields, "a_field_of_a_newer_writer": 1}).encode()
    assert envelope.parse_value(raw, [("content-type", content_type)], feedback_pb2.Feedback) == FEEDBACK


@pytest.mark.parametrize(
    ("raw", "headers", "reason"),
    [
        (None, None, "no value"),
        (b"\xff\xff\xff", None, "in Protobuf"),
        (b"{", [("content-type", b"application/json")], "not JSON"),
        (b"{", None, "not JSON"),
        (b"\xff\xfe", [("content-type", b"application/json")], "not JSON"),
        (b'{"value": "many"}', [("content-type", b"application/json")], "in JSON"),
        (b"[]", [("content-type", b"application/json")], "in JSON"),
        (b"a,b", [("content-type", b"text/csv")], "text/csv"),
    ],
)
def test_a_value_that_cannot_be_read_says_why(raw, headers, reason) -> None:
    with pytest.raises(envelope.MalformedRecord, match=reason):
        envelope.parse_value(raw, headers, feedback_pb2.Feedback)


def test_a_dead_letter_keeps_the_whole_record_and_its_trace() -> None:
    headers = envelope.headers_for("t", "/s", traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    letter = dead_letters.dead_letter(
        topic="feedback.v1", partition=1, offset=7, reason=dead_letter_reasons.ORPHAN, detail="no exposure", key=b"u1", value=b"\x00raw",
        headers=headers, failed_at_ms=5, feedback_id="f1",
    )  # fmt: skip
    again = dead_letter_pb2.DeadLetter.FromString(letter.SerializeToString())
    assert (again.source_topic, again.source_partition, again.source_offset, again.reason) == ("feedback.v1", 1, 7, "orphan")
    assert (again.key, again.value, dict(again.headers), again.failed_at_ms, again.feedback_id) == (
        b"u1",
        b"\x00raw",
        dict(headers),
        5,
        "f1",
    )
    own = dead_letters.dead_letter_headers(letter, "/joiner")
    assert envelope.header(own, "traceparent") == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert envelope.header(own, "ce_id") == "feedback.v1/1/7/orphan"


def test_a_dead_letter_of_a_huge_record_stays_under_the_brokers_limit_and_says_so() -> None:
    letter = dead_letters.dead_letter(topic="t", partition=0, offset=0, reason="malformed", detail="bad", value=b"x" * 2_000_000)
    assert letter.ByteSize() < 1_000_000
    assert "cut from 2000000" in letter.detail


def test_a_dead_letter_of_a_tombstone_has_empty_key_and_value() -> None:
    letter = dead_letters.dead_letter(
        topic="t", partition=0, offset=0, reason="malformed", detail="bad", key=None, value=None, headers=None
    )
    assert (letter.key, letter.value) == (b"", b"")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b'{"sampling":"hot"}', "sampling: it is text, not an object"),
        (b'{"usage":["tokens"]}', "usage: it is a list, not an object"),
        (b'{"messages":[{"role":"user"},"hello"]}', "messages: it is text, not an object"),
        (b'{"sampling":{"temperature":1' + b"0" * 400 + b"}}", "too large"),
        (b'{"sampling":{"\\ud800":1}}', "surrogates not allowed"),
        (b'{"answer":"\xed\xa0\x80"}', "surrogates not allowed"),
    ],
)
def test_json_that_protobuf_would_take_for_something_else_is_refused(value: bytes, said: str) -> None:
    with pytest.raises(envelope.MalformedRecord, match=said):
        envelope.parse_value(value, None, Generation)
    assert (
        envelope.parse_value(b'{"sampling":null,"messages":[{"role":"\\ud83d\\ude00"}]}', None, Generation).messages[0].role == "\U0001f600"
    )
