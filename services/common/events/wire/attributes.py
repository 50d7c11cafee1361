"""Attributes in Protobuf (`tunemesh.events.v1.Value`) and in JSON, to `services.common.events.attributes` and back."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from google.protobuf import json_format
from tunemesh.events.v1 import attributes_pb2

from services.common.events.attributes import NO_ATTRIBUTES, Attribute, Attributes, attributes_of, check, kind_of
from services.common.events.limits import ErrorOf

Values = Mapping[str, attributes_pb2.Value]

_KINDS = frozenset(field.name for field in attributes_pb2.Value.DESCRIPTOR.fields)


def attributes_of_values(field: str, values: Values, error: ErrorOf) -> Attributes:
    """Return the attributes in a map of a message.

    Raises:
        error: one has no value, or breaks the limits of `services.common.events.attributes`.
    """
    attributes = typed_values(field, values, error)
    check(field, attributes, error)
    return attributes


def typed_values(field: str, values: Values, error: ErrorOf) -> Attributes:
    """Return what is in a map of a message; whoever takes it in checks the limits.

    Raises:
        error: one has no value.
    """
    if not values:
        return NO_ATTRIBUTES
    return {name: _attribute(field, name, value, error) for name, value in values.items()}


def attributes_of_json(field: str, given: object, error: ErrorOf) -> dict[str, Attribute]:
    """Return the attributes in an object of JSON: plain values, or values in Protobuf's form ({"text": "Oslo"}) when all of them are.

    Raises:
        error: as `services.common.events.attributes.attributes_of`.
    """
    if isinstance(given, dict) and given and all(_is_protobufs_form(value) for value in given.values()):
        values = {name: _value_of_json(field, name, value, error) for name, value in given.items()}
        return dict(attributes_of_values(field, values, error))
    return attributes_of(field, given, error)


def write_attributes(attributes: Attributes, values: MutableMapping[str, attributes_pb2.Value]) -> None:
    """Write attributes into a map of a message."""
    for name, attribute in attributes.items():
        value, kind = values[name], kind_of(attribute)
        if kind in ("texts", "numbers"):
            of_list = getattr(value, kind)
            of_list.SetInParent()  # an empty list is a value too
            of_list.values.extend(attribute)
        else:
            setattr(value, kind, attribute)


def _attribute(field: str, name: str, value: attributes_pb2.Value, error: ErrorOf) -> Attribute:
    kind = value.WhichOneof("kind")
    if kind is None:
        raise error(f"{field}.{name[:80]}: it has no value; leave it out where there is none")
    found = getattr(value, kind)
    if kind in ("texts", "numbers"):
        return tuple(found.values)
    attribute: Attribute = found
    return attribute


def _is_protobufs_form(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and next(iter(value)) in _KINDS


def _value_of_json(field: str, name: str, value: Any, error: ErrorOf) -> attributes_pb2.Value:
    try:
        return json_format.ParseDict(value, attributes_pb2.Value())
    except (ValueError, OverflowError, RecursionError, json_format.ParseError) as failure:
        raise error(f"{field}.{name[:80]}: not a {attributes_pb2.Value.DESCRIPTOR.full_name} in JSON: {failure}") from failure
