"""profiles.v1 is read as catalog.v1 is: the same forms, by the same reader."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from tunemesh.catalog.v1.catalog_item_pb2 import CatalogItem
from tunemesh.events.v1 import profile_pb2

from services.common.events.attributes import MAX_ATTRIBUTES, MAX_TEXT_BYTES, Attributes
from services.common.events.envelope import MalformedRecord, headers_for
from services.common.events.profile import DeletedProfile, Profile
from services.common.events.wire.profile import profile_bytes, profile_of, read_change
from tests.unit.services.common.events.test_attributes import ATTRIBUTES, UNHURRIED, same

PROFILE = Profile(user_id="7", attributes={"age": 31, "city": "Oslo", "tastes": ("jazz", "soul")}, updated_at_ms=1_790_000_000_000)
PLAIN = {"city": "Oslo", "age": 31, "tastes": ["jazz", "soul"], "phone": None}
ROW = {"user_id": 7, "attributes": PLAIN, "updated_at_ms": 1_790_000_000_000, "password": "not read"}
MESSAGE = profile_pb2.Profile.FromString(profile_bytes(PROFILE))


def event(data: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "id": "1", "source": "/crm", "type": "t", "data": data}


def debezium(op: str, before: Any, after: Any) -> dict[str, Any]:
    return {"before": before, "after": after, "source": {"connector": "postgresql"}, "op": op}


FORMS: dict[str, bytes] = {
    "protobuf": MESSAGE.SerializeToString(),
    "protobuf in confluent's framing": b"\x00\x00\x00\x00\x07\x00" + MESSAGE.SerializeToString(),
    "protobuf's json": json_format.MessageToJson(MESSAGE).encode(),
    "json": json.dumps(ROW).encode(),
    "json in confluent's framing": b"\x00\x00\x00\x00\x07" + json.dumps(ROW).encode(),
    "camel case": json.dumps({"userId": "7.0", "attributes": PLAIN, "updatedAtMs": "1790000000000"}).encode(),
    "cloudevent": json.dumps(event(ROW)).encode(),
    "debezium": json.dumps(debezium("u", {"user_id": 7}, {**ROW, "attributes": json.dumps(PLAIN)})).encode(),
    "unwrapped, with schema": json.dumps({"schema": {}, "payload": {**ROW, "__deleted": "false"}}).encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_profile_is_read_in_every_form(form: str) -> None:
    change = read_change(b"7", FORMS[form], None)
    assert change == PROFILE
    assert isinstance(change, Profile)
    assert all(same(change.attributes[name], value) for name, value in PROFILE.attributes.items())


@pytest.mark.parametrize("key", [b"7", b'"7"', b"7.0", b'{"user_id":7}', b'{"id":"7"}', b'{"shop":1,"user_id":"7"}'])
@pytest.mark.parametrize("raw", [None, b"null", json.dumps(debezium("d", None, None)).encode(), b'{"__deleted":"true"}'])
def test_a_delete_takes_its_user_from_every_form_of_key(key: bytes, raw: bytes | None) -> None:
    assert read_change(key, raw, None) == DeletedProfile("7")


def test_where_the_value_names_no_user_the_key_does() -> None:
    assert read_change(b"ada", b'{"attributes":{"age":31}}', None) == Profile(user_id="ada", attributes={"age": 31})
    assert read_change(b"ada", b'{"user_id":"bob"}', None) == Profile(user_id="bob")  # of whom nothing is known


@pytest.mark.parametrize(
    ("key", "raw", "said"),
    [
        (b"1", b"\xff\xff", "not a tunemesh.events.v1.Profile in Protobuf"),
        (None, b'{"attributes":{"a":1}}', "user_id: it is empty, and the record has no key"),
        (b"x" * 129, b'{"attributes":{"a":1}}', "user_id: it has 129 bytes"),
        (b'{"a":1,"b":2}', None, "none is user_id; set the connector's message"),
        (b"1", b"", "it has none of its fields; it is empty: to delete"),
        (b"1", b'{"city":"Oslo"}', "it has none of user_id, attributes, updated_at_ms; it has: 'city'"),
        (b"1", b'{"user_id":"1","attributes":{"a":NaN}}', r"attributes\.a: nan is not finite"),
        (b"1", b'{"user_id":"1","attributes":{"a":{"b":1}}}', r"attributes\.a: it is an object; it must be a text"),
        (b"1", b'{"user_id":"1","attributes":{"a":{"number":1},"b":1}}', r"attributes\.a: it is an object"),
        (b"1", b'{"user_id":"1","attributes":"[]"}', "attributes: it is a list; it must be an object, or JSON of one"),
        (b"1", b'{"user_id":"1","updated_at_ms":1700000000}', "updated_at_ms: 1700000000 looks like seconds"),
        (b"1", json.dumps({"user_id": "1", "attributes": {"a": "x" * (10 * MAX_TEXT_BYTES)}}).encode(), "it has 163840 bytes"),
        (b"1", json.dumps({"attributes": dict.fromkeys(map(str, range(10 * MAX_ATTRIBUTES)), 1)}).encode(), "there are 10240"),
        (b"1", json.dumps(debezium("t", None, None)).encode(), "Debezium event 't', a truncate"),
    ],
)
def test_what_can_be_no_profile_is_malformed(key: bytes | None, raw: bytes | None, said: str) -> None:
    with pytest.raises(MalformedRecord, match=said):
        read_change(key, raw, None)


def test_another_message_of_the_mesh_is_no_profile() -> None:
    with pytest.raises(MalformedRecord, match=r"ce_type .*CatalogItem.: it belongs in another topic"):
        read_change(b"1", CatalogItem(item_id="1").SerializeToString(), headers_for("tunemesh.catalog.v1.CatalogItem", "/s"))


@UNHURRIED
@given(ATTRIBUTES)
def test_a_packed_profile_is_read_back(attributes: Attributes) -> None:
    profile = Profile(user_id="ada", attributes=attributes, updated_at_ms=3)
    found = profile_of(profile_bytes(profile))
    assert found == profile
    assert all(same(found.attributes[name], value) for name, value in attributes.items())


def test_damaged_bytes_are_no_profile() -> None:
    with pytest.raises(MalformedRecord, match=r"not a tunemesh\.events\.v1\.Profile"):
        profile_of(b"\xff")
    with pytest.raises(MalformedRecord, match=r"attributes\.a: it has no value"):
        profile_of(profile_pb2.Profile(user_id="1", attributes={"a": {}}).SerializeToString())
