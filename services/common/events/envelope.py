"""The event envelope: CloudEvents 1.0 binary mode and W3C traceparent as Kafka headers, Protobuf or JSON as value.

Source: CloudEvents Kafka protocol binding 1.0.2 (headers `ce_*`, `content-type` as data content type).
It does not know any topic, and it validates no field: a value that parses may still be nonsense to its reader.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from services.common.platform.clock import wall_ms
from services.common.platform.kafka_batches import CONTENT_TYPE_UNREADABLE

Headers = Sequence[tuple[str, bytes]]
MessageT = TypeVar("MessageT", bound=Message)

CONTENT_TYPE_PROTOBUF = "application/protobuf"
CONTENT_TYPE_JSON = "application/json"
_PROTOBUF_NAMES = frozenset({"", CONTENT_TYPE_PROTOBUF, "application/x-protobuf", "application/vnd.google.protobuf"})


class MalformedRecord(Exception):
    """A Kafka value that cannot be read; the message says why. Retrying does not help: set the record aside."""


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


def header(headers: Headers | None, name: str) -> str | None:
    """Return the first header of that name as text, or None. Bytes that are not UTF-8 are replaced, never raised on."""
    for key, value in headers or ():
        if key == name:
            return value.decode("utf-8", "replace") if value is not None else None
    return None


def parse_value(raw: bytes | None, headers: Headers | None, message_class: type[MessageT]) -> MessageT:
    """Parse a record's value: Protobuf, or JSON when the `content-type` header says so.

    JSON takes both the proto's field names and their lowerCamelCase forms. Unknown fields are ignored in both encodings, so
    that an old reader reads a new writer. A floating-point number that is null is NaN: none was given.

    Raises:
        MalformedRecord: no value, an unknown content type, or bytes that do not parse.
    """
    if raw is None:
        raise MalformedRecord("the record has no value")
    content_type = header(headers, "content-type")
    if content_type is None or content_type == CONTENT_TYPE_PROTOBUF:  # the hot path
        return _from_protobuf(raw, message_class)
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in _PROTOBUF_NAMES:
        return _from_protobuf(raw, message_class)
    if media_type == CONTENT_TYPE_JSON:
        return _from_json(raw, message_class)
    if media_type == CONTENT_TYPE_UNREADABLE:
        raise MalformedRecord(raw.decode("utf-8", "replace"))
    raise MalformedRecord(f"content-type {content_type!r} is neither {CONTENT_TYPE_PROTOBUF} nor {CONTENT_TYPE_JSON}")


def _from_protobuf(raw: bytes, message_class: type[MessageT]) -> MessageT:
    try:
        return message_class.FromString(raw)
    except DecodeError as error:
        raise MalformedRecord(f"not a {message_class.DESCRIPTOR.full_name} in Protobuf: {error}") from error


def _from_json(raw: bytes, message_class: type[MessageT]) -> MessageT:
    message = message_class()
    try:
        fields = json.loads(raw)
        if not isinstance(fields, dict):
            raise MalformedRecord(f"not a {message_class.DESCRIPTOR.full_name} in JSON: the value is no object")
        json_format.ParseDict(fields, message, ignore_unknown_fields=True)
        _keep_nulls(fields, message)
    except (ValueError, RecursionError, json_format.ParseError) as error:
        raise MalformedRecord(f"not a {message_class.DESCRIPTOR.full_name} in JSON: {error}") from error
    return message


def _keep_nulls(fields: dict[str, Any], message: Message) -> None:
    """Set numbers that are null to NaN. Protobuf reads a null as 0, which would be the lowest opinion, or "no"."""
    for field in message.DESCRIPTOR.fields:
        if field.type == field.TYPE_DOUBLE and any(name in fields and fields[name] is None for name in (field.name, field.json_name)):
            setattr(message, field.name, math.nan)


def _rfc3339(unix_ms: int) -> bytes:
    seconds, millis = divmod(unix_ms, 1000)
    return f"{_rfc3339_second(seconds)}.{millis:03d}Z".encode()


@lru_cache(maxsize=16)  # formatting a date takes longer than all other headers together, and many events share a second
def _rfc3339_second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"
