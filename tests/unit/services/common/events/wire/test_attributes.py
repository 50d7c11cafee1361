"""Attributes in Protobuf and in both forms of JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from tunemesh.catalog.v1.catalog_item_pb2 import CatalogItem
from tunemesh.events.v1.attributes_pb2 import Numbers, Texts, Value

from services.common.events.attributes import MAX_ATTRIBUTES, MAX_BYTES, MAX_ELEMENTS, MAX_TEXT_BYTES, Attributes
from services.common.events.wire.attributes import attributes_of_json, attributes_of_values, write_attributes
from tests.unit.services.common.events.test_attributes import ATTRIBUTES, UNHURRIED, Refused, same


def message_of(attributes: Attributes) -> CatalogItem:
    message = CatalogItem()
    write_attributes(attributes, message.typed_attributes)
    return CatalogItem.FromString(message.SerializeToString())


def read(values: dict[str, Value]) -> Attributes:
    return attributes_of_values("context", values, Refused)


@UNHURRIED
@given(ATTRIBUTES)
def test_protobuf_and_both_forms_of_json_say_the_same(attributes: Attributes) -> None:
    message = message_of(attributes)
    found = attributes_of_values("a", message.typed_attributes, Refused)
    protobufs_json = json_format.MessageToDict(message).get("typedAttributes", {})
    of_protobufs_json = attributes_of_json("a", json.loads(json.dumps(protobufs_json)), Refused)
    of_plain_json = attributes_of_json("a", json.loads(json.dumps(attributes)), Refused)
    for read_again in (found, of_protobufs_json, of_plain_json):
        assert read_again.keys() == attributes.keys()
        assert all(same(read_again[name], value) for name, value in attributes.items())


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Value(), r"context\.a: it has no value; leave it out"),
        (Value(number=math.nan), r"context\.a: nan is not finite"),
        (Value(numbers=Numbers(values=[1, math.inf])), r"context\.a\[1\]: inf is not finite"),
        (Value(text="x" * (MAX_TEXT_BYTES + 1)), r"context\.a: it has 16385 bytes"),
        (Value(text="x" * (10 * MAX_TEXT_BYTES)), r"context\.a: it has 163840 bytes"),
        (Value(texts=Texts(values=["", "x" * (MAX_TEXT_BYTES + 1)])), r"context\.a\[1\]: it has 16385 bytes"),
        (Value(numbers=Numbers(values=[0.0] * (10 * MAX_ELEMENTS))), r"context\.a: it has 40960 elements"),
        (Value(texts=Texts(values=["x" * MAX_TEXT_BYTES] * 4)), rf"context: together they have 65541 bytes; at most {MAX_BYTES}"),
    ],
)
def test_a_value_that_breaks_the_rules_is_refused_with_its_name(value: Value, said: str) -> None:
    with pytest.raises(Refused, match=said):
        read({"a": value})


def test_names_and_their_number_are_bounded_in_messages_too() -> None:
    with pytest.raises(Refused, match="context: the name '' is empty"):
        read({"": Value(integer=1)})
    with pytest.raises(Refused, match="context: there are 10240; at most 1024"):
        read({f"n{number}": Value(integer=1) for number in range(10 * MAX_ATTRIBUTES)})


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"a": {"integer": "31"}}, {"a": 31}),
        ({"a": {"integer": 31}, "b": {"texts": {}}}, {"a": 31, "b": ()}),
        ({"a": {"numbers": {"values": [1, 2.5]}}}, {"a": (1.0, 2.5)}),
        ({"a": {"boolean": True}}, {"a": True}),
    ],
)
def test_protobufs_form_of_json_is_read(given: Any, found: Attributes) -> None:
    assert attributes_of_json("a", given, Refused) == found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"a": {"number": "NaN"}}, r"profile\.a: nan is not finite"),
        ({"a": {"integer": 1.5}}, r"profile\.a: not a tunemesh.events.v1.Value in JSON"),
        ({"a": {"number": {}}}, r"profile\.a: not a tunemesh.events.v1.Value"),
        ({"a": {"numbers": [1]}}, r"profile\.a: not a tunemesh.events.v1.Value"),
        ({"a": {"text": None}}, r"profile\.a: it has no value"),
        # An object among plain values is an object, whatever it is called.
        ({"a": {"number": 5}, "b": 5}, r"profile\.a: it is an object; it must be"),
        ({"a": {"street": "x"}}, r"profile\.a: it is an object"),
    ],
)
def test_what_is_neither_form_of_json_is_refused(given: Any, said: str) -> None:
    with pytest.raises(Refused, match=said):
        attributes_of_json("profile", given, Refused)
