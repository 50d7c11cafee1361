"""The event envelope: CloudEvents 1.0 binary mode and W3C traceparent as Kafka headers, Protobuf or JSON as value.

Source: CloudEvents Kafka protocol binding 1.0.2 (headers `ce_*`, `content-type` as data content type).
It does not know any topic, and it validates no field: a value that parses may still be nonsense to its reader.
"""

from __future__ import annotations

import math
import uuid
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from services.common.events.content import (
    CONTENT_TYPE_JSON,
    CONTENT_TYPE_PROTOBUF,
    Content,
    Headers,
    MalformedRecord,
    content_of,
    header,
    is_bare_protobuf,
    json_behind_blanks,
    looks_like,
)
from services.common.platform.clock import wall_ms

__all__ = ["CONTENT_TYPE_JSON", "CONTENT_TYPE_PROTOBUF", "Headers", "MalformedRecord", "header", "headers_for", "message_of", "parse_value"]

MessageT = TypeVar("MessageT", bound=Message)


def headers_for(
    event_type: str,
    source: str,
    *,
    event_id: str | None = None,
    time_ms: int | None = None,
    traceparent: str | None = None,
    content_type: str = CONTENT_TYPE_PROTOBUF,
) -> list[tuple[str, bytes]]:
    """Return the Kafka headers of one event.

    Args:
        event_type: `ce_type`, e.g. "tunemesh.events.v1.Feedback".
        source: `ce_source`, e.g. "/tunemesh/router".
        event_id: `ce_id`; a random UUID when absent.
        time_ms: `ce_time` as Unix milliseconds; the wall clock when absent.
        traceparent: W3C trace context of the span that produces the event; no header when absent.
        content_type: how the value is encoded.
    """
    millis = wall_ms() if time_ms is None else time_ms
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", (event_id or str(uuid.uuid4())).encode()),
        ("ce_type", event_type.encode()),
        ("ce_source", source.encode()),
        ("ce_time", _rfc3339(millis)),
        ("content-type", content_type.encode()),
    ]
    if traceparent:
        headers.append(("traceparent", traceparent.encode()))
    return headers


def parse_value(raw: bytes | None, headers: Headers | None, message_class: type[MessageT]) -> MessageT:
    """Parse a record's value: Protobuf or JSON, bare or in what `services.common.events.content` unwraps.

    JSON takes both the proto's field names and their lowerCamelCase forms, and ids as whole numbers too. Unknown fields are ignored in both
    encodings, so that an old reader reads a new writer. A floating-point number that is null is NaN: none was given.

    Raises:
        MalformedRecord: no value, or none that can be read as this message; the message says what it is.
    """
    if raw is None:
        raise MalformedRecord("the record has no value")
    content_type = header(headers, "content-type")
    if is_bare_protobuf(raw, content_type):  # the hot path
        try:
            return message_class.FromString(raw)
        except DecodeError as error:
            content = json_behind_blanks(raw)
            if content is None:
                raise _no_protobuf(raw, message_class, error) from error
    else:
        content = content_of(raw, headers)
    return message_of(content, message_class)


def message_of(content: Content, message_class: type[MessageT]) -> MessageT:
    """Return unwrapped content as a message.

    Raises:
        MalformedRecord: it does not parse.
    """
    if content.protobuf is None:
        return _from_json(content, message_class)
    try:
        return message_class.FromString(content.protobuf)
    except DecodeError as error:
        raise _no_protobuf(content.protobuf, message_class, error, content.wrapping) from error


def _no_protobuf(raw: bytes, message_class: type[Message], error: DecodeError, wrapping: str = "") -> MalformedRecord:
    return MalformedRecord(f"not a {message_class.DESCRIPTOR.full_name} in Protobuf{wrapping}: {error}{looks_like(raw)}")


def _from_json(content: Content, message_class: type[MessageT]) -> MessageT:
    message = message_class()
    where = f"not a {message_class.DESCRIPTOR.full_name} in JSON{content.wrapping}"
    if not isinstance(content.json, dict):
        raise MalformedRecord(f"{where}: the value is {json_type(content.json)}, not an object")
    try:
        _check_objects(content.json, message_class.DESCRIPTOR)
        json_format.ParseDict(_with_written_ids(content.json, message_class), message, ignore_unknown_fields=True)
        _keep_nulls(content.json, message)
    except (ValueError, OverflowError, RecursionError, json_format.ParseError) as error:
        raise MalformedRecord(f"{where}: {error}") from error
    return message


def _check_objects(fields: dict[str, Any], message: Any, within: str = "") -> None:
    """Raise ValueError where a message is not an object: Protobuf would take a text, or a list, for one without any of its fields
    (findings/protobuf_json_takes_text_for_a_message.sh).
    """
    for field in message.fields:
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for name in {field.name, field.json_name} & fields.keys():
            value = fields[name]
            for each in value if isinstance(value, list) and field.is_repeated else [value]:
                if isinstance(each, dict):
                    _check_objects(each, field.message_type, f"{within}{name}.")
                elif each is not None:
                    raise ValueError(f"{within}{name}: it is {json_type(each)}, not an object")


def _keep_nulls(fields: dict[str, Any], message: Message) -> None:
    """Set numbers that are null to NaN. Protobuf reads a null as 0, which would be the lowest opinion, or "no"."""
    for field in message.DESCRIPTOR.fields:
        if field.type == field.TYPE_DOUBLE and any(name in fields and fields[name] is None for name in (field.name, field.json_name)):
            setattr(message, field.name, math.nan)


def _with_written_ids(fields: dict[str, Any], message_class: type[Message]) -> dict[str, Any]:
    """Return the fields with ids as text: a database's whole number is the id that the same number is in a request."""
    numbers = {
        name: str(int(fields[name]))
        for field in message_class.DESCRIPTOR.fields
        if field.name.endswith("_id")
        for name in (field.name, field.json_name)
        if _is_whole(fields.get(name))
    }
    return {**fields, **numbers} if numbers else fields


def _is_whole(value: Any) -> bool:
    return type(value) is int or (isinstance(value, float) and value.is_integer() and abs(value) < 2**53)


def json_type(value: Any) -> str:
    """Return what a value of JSON is called, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _rfc3339(unix_ms: int) -> bytes:
    seconds, millis = divmod(unix_ms, 1000)
    return f"{_rfc3339_second(seconds)}.{millis:03d}Z".encode()


@lru_cache(maxsize=16)  # formatting a date takes longer than all other headers together, and many events share a second
def _rfc3339_second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"
