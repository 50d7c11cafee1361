"""Values as other writers really send them (tests/recorded/record_events.py), and those that the mesh does not read."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tunemesh.catalog.v1 import catalog_item_pb2
from tunemesh.events.v1 import feedback_pb2

from services.common.events.catalog import CatalogItem
from services.common.events.envelope import MalformedRecord, parse_value
from services.common.events.profile import Profile
from services.common.events.wire import profile
from services.common.events.wire.catalog import read_change
from services.common.events.wire.exposure import read_exposure
from services.common.events.wire.feedback import read_feedback
from services.common.events.wire.generation import read_generation
from services.common.platform.kafka_batches import CONTENT_TYPE_UNREADABLE
from tests.fuzz.records import Triple, nearly_right, written_by_the_router
from tests.unit.services.common.events.test_attributes import same

RECORDED = {
    name: (each["key"].encode(), base64.b64decode(each["value"]), [(key, base64.b64decode(raw)) for key, raw in each["headers"].items()])
    for name, each in json.loads((Path(__file__).parents[4] / "recorded" / "events.json").read_text(encoding="utf-8")).items()
}
NOW_MS = 1_700_000_000_000
REFUSED = {"confluent/avro": r"schema id \d+.*Avro.*value.serializer", "sdk2/binary/list": "Python|a list: write one event"}
REFUSED |= {"sdk2/structured/list": "the value is a list, not an object"}
ITEM = CatalogItem(item_id="1001", title="Käse", categories=("Crime", "Drama"), updated_at_ms=NOW_MS)
ITEM_JSON = {"item_id": "1001", "title": "Käse", "categories": ["Crime", "Drama"], "updated_at_ms": NOW_MS}


def recorded(noun: str) -> list[str]:
    return sorted(name.partition("/")[2] for name in RECORDED if name.startswith(f"{noun}/"))


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (b"x", [("content-type", b"t" * 1_000_000)]),
        (json.dumps({"n" * 1_000_000: 1}).encode(), None),
        (json.dumps({"updated_at_ms": "9" * 1_000_000, "item_id": "1"}).encode(), None),
        (json.dumps({"op": "t", "source": "s" * 1_000_000}).encode(), None),
        (json.dumps({"specversion": "1.0", "id": "1", "source": "s", "type": "t" * 1_000_000}).encode(), None),
    ],
)
def test_what_is_said_of_a_record_is_bounded_whatever_stands_in_it(value: bytes, headers: list[tuple[str, bytes]] | None) -> None:
    with pytest.raises(MalformedRecord) as caught:
        read_change(b"k" * 1_000_000, value, headers)
    assert len(str(caught.value)) < 1_100


@pytest.mark.parametrize("writer", recorded("item"))
def test_an_item_of_every_writer_is_read_or_refused_by_name(writer: str) -> None:
    key, value, headers = RECORDED[f"item/{writer}"]
    if writer in REFUSED:
        with pytest.raises(MalformedRecord, match=REFUSED[writer]):
            read_change(key, value, headers)
    else:
        assert read_change(key, value, headers) == ITEM


ATTRIBUTES = {"adult": False, "embedding": (0.5, -1.25), "moods": ("dark", "slow"), "price": 7.5, "studio": "Käse", "year": 1995}
READ_AS: dict[str, Any] = {
    "typed_item": (read_change, dataclasses.replace(ITEM, attributes=ATTRIBUTES)),
    "profile": (profile.read_change, Profile(user_id="1001", attributes=ATTRIBUTES, updated_at_ms=NOW_MS)),
}


@pytest.mark.parametrize(("noun", "writer"), [(noun, writer) for noun in READ_AS for writer in recorded(noun)])
def test_attributes_of_every_writer_are_typed_alike_or_refused_by_name(noun: str, writer: str) -> None:
    key, value, headers = RECORDED[f"{noun}/{writer}"]
    read, expected = READ_AS[noun]
    if writer in REFUSED:
        with pytest.raises(MalformedRecord, match=REFUSED[writer]):
            read(key, value, headers)
        return
    found = read(key, value, headers)
    assert found == expected
    assert all(same(found.attributes[name], each) for name, each in ATTRIBUTES.items())


@pytest.mark.parametrize("writer", recorded("feedback"))
def test_a_feedback_of_every_writer_is_read_or_refused_by_name(writer: str) -> None:
    _, value, headers = RECORDED[f"feedback/{writer}"]
    if writer in REFUSED:
        with pytest.raises(MalformedRecord, match=REFUSED[writer]):
            read_feedback(value, headers, NOW_MS)
        return
    feedback = read_feedback(value, headers, NOW_MS)
    assert (feedback.feedback_id, feedback.item_id, feedback.value, feedback.accepted_at_ms) == ("f1", "1001", 4.5, NOW_MS)
    # In binary mode the SDK writes the event's traceparent as it writes every attribute.
    assert bool(feedback.traceparent) == (writer.startswith("sdk1/binary"))


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n  ", b" "])
@pytest.mark.parametrize(
    "content_type", [None, b"application/json", b"text/json", b"application/vnd.acme.item+json", b"application/octet-stream"]
)
def test_json_is_known_by_how_it_begins(start: bytes, content_type: bytes | None) -> None:
    headers = [("content-type", content_type)] if content_type else None
    assert read_change(None, start + json.dumps(ITEM_JSON).encode(), headers) == ITEM


def test_whole_numbers_are_ids() -> None:
    fields = {"feedback_id": 7, "requestId": 2**63, "user_id": 42, "item_id": -1.0, "kind": "click", "value": 1, "accepted_at_ms": NOW_MS}
    feedback = read_feedback(json.dumps(fields).encode(), None, NOW_MS)
    assert (feedback.feedback_id, feedback.request_id, feedback.user_id, feedback.item_id) == ("7", str(2**63), "42", "-1")
    with pytest.raises(MalformedRecord, match="item_id"):
        read_feedback(json.dumps({**fields, "item_id": 1.5}).encode(), None, NOW_MS)


def framed(indexes: bytes, body: bytes) -> bytes:
    return b"\x00\x00\x00\x01\x07" + indexes + body


BARE = catalog_item_pb2.CatalogItem(item_id="1001", title="Käse", categories=["Crime", "Drama"], updated_at_ms=NOW_MS).SerializeToString()


@pytest.mark.parametrize("indexes", [b"\x00", b"\x02\x00", b"\x02\x02", b"\x04\x02\x06"])
def test_message_indexes_of_any_number_are_stripped(indexes: bytes) -> None:
    assert read_change(b"k", framed(indexes, BARE), None) == ITEM


@pytest.mark.parametrize(
    ("value", "content_type", "said"),
    [
        (b"\x00", None, "begins like Confluent's framing, but has 1 bytes only"),
        (framed(b"\x01", BARE), None, "schema id 263.*Avro"),
        (framed(b"\x02", b""), None, "schema id 263.*Avro"),
        (framed(b"\x80" * 12, b""), None, "schema id 263.*Avro"),
        (framed(b"\x00", b"\xff"), None, r"in Protobuf \(in Confluent's framing, schema id 263\)"),
        (b"\x1f\x8b\x08\x00", None, "looks like gzip: compress with the producer's compression.type"),
        (b"\xac\xed\x00\x05t", None, "looks like a serialised Java object"),
        (b"Obj\x01\x04", None, "looks like an Avro file"),
        (b"<item/>", None, "looks like XML"),
        (b"Struct{item_id=1001}", None, "JsonConverter in place of StringConverter"),
        (b"", b"application/json", "it is empty: to delete"),
        (b"[]", b"application/cloudevents-batch+json", "a batch of CloudEvents"),
        (b"{}", b"application/cloudevents+json", "it is no CloudEvent"),
        (b"\x0a\x01a", b"application/avro", "content-type 'application/avro' is neither"),
        (b'{"specversion":"1.0","id":"1","source":"/s","type":"t"}', None, r"structured CloudEvent \(type 't'\) without data"),
        (b'{"specversion":"1.0","id":"1","source":"/s","type":"t","data_base64":"?"}', None, "is not base64"),
        (b'{"specversion":"1.0","id":"1","source":"/s","type":"t","data_base64":7}', None, "is not base64"),
        (b'{"specversion":"1.0","id":"1","source":"/s","type":"t","data":"text"}', None, "the value is text, not an object"),
        (b"[" * 100_000, b"application/json", "not JSON"),
        (b'{"a":' + b"9" * 5_000 + b"}", None, "not JSON"),
        (b"t[3] offsets 1 to 4 cannot be decoded", CONTENT_TYPE_UNREADABLE.encode(), r"^t\[3\] offsets 1 to 4 cannot be decoded$"),
    ],
)
def test_what_is_not_read_is_refused_by_its_name(value: bytes, content_type: bytes | None, said: str) -> None:
    headers = [("content-type", content_type)] if content_type else None
    with pytest.raises(MalformedRecord, match=said):
        parse_value(value, headers, feedback_pb2.Feedback)
    with pytest.raises(MalformedRecord):
        read_change(b"k", value, headers)


def test_no_input_ends_a_reader_otherwise_than_by_its_error() -> None:
    """tests/fuzz goes on where this ends."""
    by_router = written_by_the_router()
    readers: dict[str, Callable[[Triple], object]] = {
        "catalogue": lambda record: read_change(*record),
        "feedback": lambda record: read_feedback(record[1], record[2], NOW_MS),
        "exposure": lambda record: read_exposure(record[1], record[2], NOW_MS),
        "generation": lambda record: read_generation(record[1], record[2], NOW_MS),
    }
    for noun, read in readers.items():
        num_read = 0
        for record in nearly_right(by_router.get(noun) or RECORDED.values(), 1_500, seed=7):
            try:
                read(record)
                num_read += 1
            except MalformedRecord as error:
                assert str(error)
        assert 50 < num_read < 1_450
