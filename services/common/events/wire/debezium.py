"""Rows of a table as Kafka Connect and Debezium write them in JSON: with Debezium's envelope or without, with Connect's schema or without.

Source: Debezium's reference, "Data change events" and "New Record State Extraction"; Connect's JsonConverter. Of the columns categories
and attributes it knows that lists and objects come as JSON in text where the database has them so.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from services.common.events.content import MalformedRecord
from services.common.events.envelope import json_type

_UNAVAILABLE = "__debezium_unavailable_value"
_INTEGER_BYTES = 8
_REFUSED = {"t": "a truncate of the whole table", "m": "a message of the database's log"}


@dataclass(frozen=True, slots=True)
class Row:
    """One row. `fields` of a deleted one may lack everything, its id too."""

    fields: dict[str, Any]
    is_deleted: bool = False


def row_of(value: Any, names: Collection[str]) -> Row:
    """Return the row in a JSON value; an object that is no row of Debezium's is one itself.

    Args:
        value: what the JSON says.
        names: of the columns that are looked at.
    Raises:
        MalformedRecord: it is none, or an event that is not about one row.
    """
    value = _payload(value)
    if value is None:
        return Row({}, is_deleted=True)
    if not isinstance(value, dict):
        raise MalformedRecord(f"the value is {json_type(value)}, not an object")
    is_envelope = "before" in value and "after" in value
    operation = value.get("op")
    if isinstance(operation, str) and operation in _REFUSED and ("source" in value or is_envelope):
        raise MalformedRecord(f"Debezium event {operation!r}, {_REFUSED[operation]}: it is about no row; delete rows one by one")
    if is_envelope:
        if value["after"] is None:
            return Row(value["before"] if isinstance(value["before"], dict) else {}, is_deleted=True)
        value = value["after"]
        if not isinstance(value, dict):
            raise MalformedRecord(f"after of a Debezium event is {json_type(value)}, not a row")
    if value.get("__deleted") in (True, "true"):
        return Row(value, is_deleted=True)
    return Row({name: _column(name, column) if name in names else column for name, column in value.items() if name != "__deleted"})


def key_id(key: bytes | None, id_name: str) -> str:
    """Return the id that a record's key names: its text, or the only column of a JSON object (`id_name` of several).

    Raises:
        MalformedRecord: there is no key, or none that names an id.
    """
    if key is None:
        raise MalformedRecord(f"{id_name}: it is empty, and the record has no key")
    if len(key) == _INTEGER_BYTES and key[:1] == b"\x00":
        raise MalformedRecord(
            f"key: {key!r} is the integer {int.from_bytes(key, 'big')} in eight bytes (LongSerializer), or Confluent's framing around "
            "three: nobody can tell; set the producer's key.serializer to the one for strings"
        )
    # Confluent's framing, with JSON Schema: a zero byte and four of schema id.
    framed = key[:1] == b"\x00"
    try:
        text = (key[5:] if framed else key).decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedRecord(f"key: {key[:40]!r} is no text; set the producer's key.serializer to the one for strings") from error
    if text[:1] in ("{", '"') or framed:
        return _id_in_json(text, id_name)
    if any(character < " " for character in text):
        raise MalformedRecord(
            f"key: {key[:40]!r} is a number in binary, or no text; set the producer's key.serializer to the one for strings"
        )
    if text.startswith("Struct{"):
        raise MalformedRecord(f"key: {text[:80]!r} is a Kafka Connect struct as text: set key.converter to JsonConverter")
    return text


def _id_in_json(text: str, id_name: str) -> str:
    try:
        value = _payload(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise MalformedRecord(
            f"key: {text[:80]!r} is not JSON: {error}; set the producer's key.serializer to the one for strings"
        ) from error
    if isinstance(value, dict):
        if id_name not in value and len(value) != 1:
            raise MalformedRecord(f"key: of its columns {list(value)[:8]} none is {id_name}; set the connector's message.key.columns")
        value = value[id_name] if id_name in value else next(iter(value.values()))
    if isinstance(value, str):
        return value
    if type(value) is int:
        return str(value)
    raise MalformedRecord(f"key: the id is {json_type(value)}; it must be text or a whole number")


def _payload(value: Any) -> Any:
    """Return the value without the schema that JsonConverter writes beside it."""
    return value["payload"] if isinstance(value, dict) and value.keys() == {"schema", "payload"} else value


def _column(name: str, value: Any) -> Any:
    """Return a column as the field that it fills."""
    if value in (_UNAVAILABLE, [_UNAVAILABLE]):
        raise MalformedRecord(
            f"{name}: the database did not log the unchanged column ({_UNAVAILABLE}); set REPLICA IDENTITY FULL on the table, "
            "or leave the column out (column.exclude.list)"
        )
    if name not in ("categories", "attributes") or value is None:
        return value
    wanted = list if name == "categories" else dict
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):  # what is no JSON is named below
            value = json.loads(value)
    if not isinstance(value, wanted):
        raise MalformedRecord(f"{name}: it is {json_type(value)}; it must be {json_type(wanted())}, or JSON of one as text")
    return value
