"""One reader for all four who read the catalogue: the mesh's own records, and tables as Debezium sends them."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from google.protobuf import json_format
from tunemesh.catalog.v1 import catalog_item_pb2
from tunemesh.events.v1 import feedback_pb2

from services.common.events.catalog import CatalogItem, DeletedItem
from services.common.events.envelope import MalformedRecord, headers_for
from services.common.events.wire.attributes import write_attributes
from services.common.events.wire.catalog import changes_of, read_change
from tests.unit.services.common.events.test_attributes import same

ROW = {"item_id": 1001, "title": "Heat", "categories": ["Crime"], "attributes": '{"year": 1995}', "price": 7.5, "updated_at_ms": None}
ITEM = CatalogItem(item_id="1001", title="Heat", categories=("Crime",), attributes={"year": 1995})
SOURCE = {"version": "3.3.0.Final", "connector": "postgresql", "name": "shop", "ts_ms": 1_790_000_000_000, "table": "items"}
SCHEMA = {
    "type": "struct",
    "fields": [{"type": "int64", "optional": False, "field": "item_id"}],
    "optional": False,
    "name": "shop.items.Key",
}
KEYS = {
    "text": b"1001",
    "json text": b'"1001"',
    "json number": b"1001",
    "struct": b'{"item_id":1001}',
    "struct of text": b'{"item_id":"1001"}',
    "only column": b'{"id":1001}',
    "two columns": b'{"shop":3,"item_id":1001}',
    "with schema": json.dumps({"schema": SCHEMA, "payload": {"item_id": 1001}}).encode(),
    "schema of a plain key": b'{"schema":{"type":"int64","optional":false},"payload":1001}',
    "confluent json": b'\x00\x00\x00\x00\x05"1001"',
}


def value(**fields: Any) -> bytes:
    return catalog_item_pb2.CatalogItem(**fields).SerializeToString()


def debezium(op: str, before: Any, after: Any) -> dict[str, Any]:
    return {"before": before, "after": after, "source": SOURCE, "op": op, "ts_ms": 1_790_000_000_100, "transaction": None}


def with_schema(payload: Any) -> dict[str, Any]:
    return {"schema": SCHEMA, "payload": payload}


def test_an_item_is_read_whole_with_its_attributes_sorted() -> None:
    raw = value(item_id="172", title="Heat", categories=["Crime", "Drama"], attributes={"year": "1995", "colour": "blue"}, updated_at_ms=7)
    assert read_change(b"172", raw, headers_for("tunemesh.catalog.v1.CatalogItem", "/shop")) == CatalogItem(
        item_id="172", title="Heat", categories=("Crime", "Drama"), attributes={"colour": "blue", "year": "1995"}, updated_at_ms=7
    )


TYPED = {"bulky": False, "colours": ("red", "blue"), "price": 7.5, "size": (1.0, 2.5), "studio": "X", "year": 1995}
PLAIN = {"year": 1995, "price": 7.5, "studio": "X", "bulky": False, "colours": ["red", "blue"], "size": [1, 2.5], "none": None}


def typed_message() -> catalog_item_pb2.CatalogItem:
    message = catalog_item_pb2.CatalogItem(item_id="1")
    write_attributes(TYPED, message.typed_attributes)
    return message


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps({"item_id": 1, "attributes": PLAIN}).encode(),
        json.dumps({"itemId": "1", "typedAttributes": PLAIN}).encode(),
        json.dumps({"item_id": "1", "typed_attributes": PLAIN, "attributes": {"year": "old"}}).encode(),
        json.dumps(debezium("c", None, {"item_id": 1, "attributes": json.dumps(PLAIN)})).encode(),
        json.dumps(with_schema({"item_id": 1, "attributes": PLAIN})).encode(),
        json.dumps({"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": {"item_id": 1, "attributes": PLAIN}}).encode(),
        json_format.MessageToJson(typed_message()).encode(),
        typed_message().SerializeToString(),
        b"\x00\x00\x00\x00\x07\x00" + typed_message().SerializeToString(),
    ],
    ids=["json", "protobuf's name", "both", "debezium, json in text", "connect", "cloudevent", "protobuf's json", "protobuf", "confluent"],
)
def test_attributes_are_typed_whoever_writes_them(raw: bytes) -> None:
    change = read_change(b"1", raw, None)
    assert isinstance(change, CatalogItem)
    assert change.item_id == "1"
    assert list(change.attributes) == sorted(TYPED)
    assert all(same(change.attributes[name], value) for name, value in TYPED.items())


def test_a_name_in_both_fields_of_protobuf_is_the_typed_one() -> None:
    message = typed_message()
    message.attributes.update({"year": "1995", "old": "text"})
    change = read_change(b"1", message.SerializeToString(), None)
    assert isinstance(change, CatalogItem)
    assert change.attributes == {**TYPED, "old": "text"}


def test_an_item_of_nothing_but_attributes_is_one() -> None:
    assert read_change(b"1", b'{"attributes":{"year":1995}}', None) == CatalogItem(item_id="1", attributes={"year": 1995})


def test_where_the_value_names_no_item_the_key_does() -> None:
    """The feature stream alone took it so; the recommender kept such an item under an empty id."""
    assert read_change(b"172", value(title="Heat"), None) == CatalogItem(item_id="172", title="Heat")
    assert read_change(b"other", value(item_id="172"), None) == CatalogItem(item_id="172")
    assert read_change(b'{"id":172}', b'{"title":"Heat"}', None) == CatalogItem(item_id="172", title="Heat")


@pytest.mark.parametrize("op", ["c", "u", "r"])
@pytest.mark.parametrize("wrapped", [lambda event: event, with_schema])
def test_a_row_in_debeziums_envelope_is_an_item(op: str, wrapped: Any) -> None:
    event = wrapped(debezium(op, None if op == "c" else {"item_id": 1001, "title": "old"}, ROW))
    assert read_change(KEYS["struct"], json.dumps(event).encode(), None) == ITEM
    cloud_event = {"specversion": "1.0", "id": "1", "source": "/debezium", "type": "io.debezium.connector.postgresql.DataChangeEvent"}
    assert read_change(KEYS["struct"], json.dumps({**cloud_event, "data": event}).encode(), None) == ITEM


@pytest.mark.parametrize(
    "row", [ROW, with_schema(ROW), {**ROW, "__deleted": "false"}, with_schema({**ROW, "__deleted": "false"}), {**ROW, "__op": "u"}]
)
def test_an_unwrapped_row_is_an_item(row: Any) -> None:
    assert read_change(KEYS["struct"], json.dumps(row).encode(), None) == ITEM


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize(
    "said",
    [None, b"null", b" null\n", with_schema(None), debezium("d", None, None), {"__deleted": "true"}, {"__deleted": True}],
    ids=["no value", "the text null", "null with blanks", "payload null", "op d", "__deleted", "__deleted as true"],
)
def test_a_delete_takes_its_id_from_every_form_of_key(key: bytes, said: Any) -> None:
    raw = json.dumps(said).encode() if isinstance(said, dict) else said
    assert read_change(key, raw, None) == DeletedItem("1001")


@pytest.mark.parametrize("said", [debezium("d", ROW, None), with_schema(debezium("d", ROW, None)), {**ROW, "__deleted": "true"}])
def test_a_delete_that_names_its_item_needs_no_key(said: Any) -> None:
    assert read_change(None, json.dumps(said).encode(), None) == DeletedItem("1001")


@pytest.mark.parametrize(
    ("key", "raw", "said"),
    [
        (b"1", b"\xff\xff", "not a tunemesh.catalog.v1.CatalogItem"),
        (None, value(title="Heat"), "item_id: it is empty, and the record has no key"),
        # The retriever took ids of up to 512 bytes, which no request may name.
        (b"1", value(item_id="x" * 129), "item_id: it has 129 bytes"),
        (b"x" * 129, value(title="Heat"), "item_id: it has 129 bytes"),
        # Both ended the feature stream, at each start anew, once an act on the item had come.
        (b"1", value(categories=["x" * 65_536]), r"categories\[0\]: it has 65536 bytes; it must have 1 to 256"),
        (b"1", value(categories=map(str, range(65_536))), "categories: there are 65536; an item has at most 256"),
        (b"1", value(categories=["Drama", ""]), r"categories\[1\]: it is empty"),
        (b"", value(title="Heat"), "item_id: it is empty"),
        (b"1", b"", "it has none of its fields; it is empty: to delete"),
        (b"1", b"{}", "it has none of item_id.*; it has: none"),
        (b"1", b'{"name":"Heat","genre":"Crime"}', "it has none of item_id.*; it has: 'name', 'genre'"),
        (b"1", b"\x92\x01\x01a", "it has none of its fields"),
        (b"1", b'{"item_id":"1","categories":"Crime,Drama"}', "categories: it is text; it must be a list, or JSON of one"),
        (b"1", b'{"item_id":"1","categories":{"a":1}}', "categories: it is an object; it must be a list"),
        (b"1", b'{"item_id":"1","attributes":{"a":NaN}}', r"attributes\.a: nan is not finite; leave it out"),
        (b"1", b'{"item_id":"1","attributes":{"a":{"b":1}}}', r"attributes\.a: it is an object; it must be a text"),
        (b"1", b'{"item_id":"1","attributes":{"a":[[1]]}}', r"attributes\.a\[0\]: it is a list"),
        (b"1", b'{"item_id":"1","attributes":{"":1}}', "attributes: the name '' is empty"),
        (b"1", b'{"item_id":"1","typedAttributes":{"a":1e999}}', r"typedAttributes\.a: inf is not finite"),
        (b"1", value(attributes={"a": "x" * 163_840}), r"attributes\.a: it has 163840 bytes; a text has at most 16384"),
        (b"1", value(attributes={f"{n}": "" for n in range(10_240)}), "attributes: there are 10240; at most 1024"),
        (b"1", value(typed_attributes={"a": {}}), r"typed_attributes\.a: it has no value"),
        (b"1", b'{"attributes":{}}', "it has none of its fields"),
        (b"1", b'{"item_id":"1","attributes":[]}', "attributes: it is a list; it must be an object"),
        (b"1", b'{"item_id":"1","title":"__debezium_unavailable_value"}', "title: the database did not log .*REPLICA IDENTITY FULL"),
        (b"1", b'{"item_id":"1","categories":["__debezium_unavailable_value"]}', "categories: the database did not log"),
        (b"1", b'{"item_id":"1","updated_at_ms":1700000000}', "updated_at_ms: 1700000000 looks like seconds"),
        (b"1", b'{"item_id":"1","updated_at_ms":1700000000000000}', "updated_at_ms: 1700000000000000 looks like microseconds"),
        (b"1", json.dumps(debezium("t", None, None)).encode(), "Debezium event 't', a truncate"),
        (b"1", b'{"op":"m","source":{},"message":{}}', "Debezium event 'm', a message"),
        (b"1", json.dumps(debezium("c", None, [1])).encode(), "after of a Debezium event is a list"),
        (b"1", b'{"schema":{},"payload":[1]}', "the value is a list, not an object"),
        (b"\xff", None, "key: .* is no text"),
        (None, None, "the record has no key"),
        (b"", None, "item_id: it is empty"),
        (b"Struct{item_id=1001}", None, "key.converter to JsonConverter"),
        (b'{"a":1,"b":2}', None, "none is item_id; set the connector's message"),
        (b'{"item_id":null}', None, "the id is null"),
        (b'{"item_id":1.5}', None, "the id is a number; it must be text or a whole number"),
        (b"{oops", None, "is not JSON"),
        (b"\x00\x00\x00\x00\x05\x081001", None, "is not JSON.*key.serializer"),
        ((3_224_115).to_bytes(8, "big"), None, r"the integer 3224115 in eight bytes \(LongSerializer\).*key.serializer"),
        ((2_240_802).to_bytes(8, "big"), None, "the integer 2240802 in eight bytes"),  # its last three bytes are "1" in quotes
        ((16_389).to_bytes(8, "big"), b'{"item_id":"","title":"a"}', "the integer 16389 in eight bytes"),
        (b"\x011", None, "a number in binary, or no text"),
        (
            b"1001",
            (16_389).to_bytes(8, "big"),
            "the integer 16389 in eight bytes.*value.serializer",
        ),  # updated_at_ms, read as framed Protobuf
    ],
)
def test_what_can_be_no_item_is_malformed(key: bytes | None, raw: bytes | None, said: str) -> None:
    with pytest.raises(MalformedRecord, match=said):
        read_change(key, raw, None)


def test_an_unchanged_column_that_nobody_reads_is_no_fault() -> None:
    raw = json.dumps({**ROW, "description": "__debezium_unavailable_value"}).encode()
    assert read_change(b"1001", raw, None) == ITEM


def test_another_message_of_the_mesh_is_no_item() -> None:
    """It parses as one: its first field is an id."""
    raw = feedback_pb2.Feedback(feedback_id="f1", request_id="r1", user_id="u1").SerializeToString()
    with pytest.raises(MalformedRecord, match=r"ce_type .*Feedback.: it belongs in another topic"):
        read_change(b"1", raw, headers_for("tunemesh.events.v1.Feedback", "/s"))


def test_changes_leave_out_what_is_malformed_and_tell_of_it() -> None:
    class Record:
        partition, headers = 0, None

        def __init__(self, offset: int, raw: bytes | None) -> None:
            self.offset, self.key, self.value = offset, b"%d" % offset, raw

    told: list[tuple[int, str]] = []
    records = [Record(0, value(title="a")), Record(1, b"\xff"), Record(2, None)]
    changes = list(changes_of(records, lambda record, error: told.append((record.offset, str(error)))))
    assert changes == [CatalogItem(item_id="0", title="a"), DeletedItem("2")]
    assert [offset for offset, _ in told] == [1]


@pytest.mark.parametrize(("width", "bits"), [(8, 56), (4, 24), (2, 12)])
def test_a_number_in_binary_names_no_item(width: int, bits: int) -> None:
    """Java's LongSerializer, IntegerSerializer and ShortSerializer, below the numbers all of whose bytes may be letters."""
    rng = random.Random(width)
    numbers = [*range(3_000)]
    numbers += [int.from_bytes(bytes(rng.choices(b'0123456789"', k=rng.randint(1, 3))), "big") for _ in range(2_000)]
    for number in (each for each in [*numbers, *(rng.getrandbits(bits) for _ in range(2_000))] if each < 2**bits):
        with pytest.raises(MalformedRecord, match=r"serializer"):
            read_change(number.to_bytes(width, "big"), None, None)


@pytest.mark.parametrize("text", ["1", "12", "123", "1001", "1234567890", "ü"])
def test_a_framed_key_is_read_where_it_can_be_told_apart(text: str) -> None:
    key = b"\x00\x00\x00\x00\x07" + json.dumps(text, ensure_ascii=False).encode()
    if len(key) == 8:
        with pytest.raises(MalformedRecord, match="nobody can tell"):
            read_change(key, None, None)
    else:
        assert read_change(key, None, None) == DeletedItem(text)
