"""What a record's value is, whoever wrote it: Protobuf or JSON, bare, as a structured CloudEvent, or in Confluent's framing. Pure.

The content-type header is believed where it can be true, and the first byte decides where there is none: no Protobuf message begins with
`{` (field 15 as a group, which proto3 has not) or with 0 (field number 0), and no JSON with 0. What the mesh does not read is refused by
its name, with the producer's setting that helps.

Sources: CloudEvents 1.0.2, JSON format and Kafka binding; Confluent's wire format (docs.confluent.io, "Formats, Serializers and
Deserializers"): a zero byte, four bytes of schema id, for Protobuf the indexes of the message type (zigzag varints, their number first; a
single 0 stands for the first type); then the value.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from services.common.platform.errors import shortened
from services.common.platform.kafka_batches import CONTENT_TYPE_UNREADABLE

Headers = Sequence[tuple[str, bytes]]

CONTENT_TYPE_PROTOBUF = "application/protobuf"
CONTENT_TYPE_JSON = "application/json"
_PROTOBUF_NAMES = frozenset({"", CONTENT_TYPE_PROTOBUF, "application/x-protobuf", "application/vnd.google.protobuf"})
_UNTOLD = frozenset({"application/octet-stream", "binary/octet-stream", "text/plain"})
"""Content types that say nothing."""
_STRUCTURED = "application/cloudevents+json"
_BATCH = "application/cloudevents-batch+json"

_FRAMED = b"\x00"
_FRAME_BYTES = 5
_INTEGER_BYTES = 8
_MAX_INDEXES = 32
_BOM = b"\xef\xbb\xbf"
_LOOKS = (
    (b"\x1f\x8b", "gzip: compress with the producer's compression.type, not the value"),
    (b"\x28\xb5\x2f\xfd", "zstd: compress with the producer's compression.type, not the value"),
    (b"\xac\xed\x00\x05", "a serialised Java object: set the producer's value.serializer to Protobuf or JSON"),
    (b"Obj\x01", "an Avro file: write Protobuf or JSON"),
    (b"PAR1", "a Parquet file: write one record an event"),
    (b"<", "XML or HTML: write Protobuf or JSON"),
    (b"[", "a list: write one event a record, as a JSON object"),  # findings/cloudevents_binary_list_is_repr.sh
    (b"Struct{", "a Kafka Connect struct as text: set value.converter to JsonConverter in place of StringConverter"),
)


class MalformedRecord(Exception):
    """A Kafka value that cannot be read; the message says why. Retrying does not help: set the record aside."""

    def __init__(self, message: str) -> None:
        """`message` may quote what was read, of whatever length."""
        super().__init__(shortened(message))


@dataclass(frozen=True, slots=True)
class Content:
    """The value of a record without its wrapping.

    Attributes:
        protobuf: bytes of a Protobuf message; None: it is JSON.
        json: what the JSON says, of any type.
        wrapping: how it came, for messages; e.g. " (in Confluent's framing, schema id 7)". Empty when bare.
    """

    protobuf: bytes | None = None
    json: Any = None
    wrapping: str = ""


def header(headers: Headers | None, name: str) -> str | None:
    """Return the first header of that name as text, or None. Bytes that are not UTF-8 are replaced, never raised on."""
    for key, value in headers or ():
        if key == name:
            return value.decode("utf-8", "replace") if value is not None else None
    return None


def is_bare_protobuf(raw: bytes, content_type: str | None) -> bool:
    """Return whether the value is Protobuf without any wrapping; what is not may still be Protobuf in some."""
    return (content_type is None or content_type == CONTENT_TYPE_PROTOBUF) and raw[:1] not in (_FRAMED, b"{", b"\xef")


def content_of(raw: bytes, headers: Headers | None) -> Content:
    """Return what a record's value is.

    Raises:
        MalformedRecord: it is something that the mesh does not read; the message names it.
    """
    return _content_of(raw, header(headers, "content-type"))


def _content_of(raw: bytes, content_type: str | None) -> Content:
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type == CONTENT_TYPE_UNREADABLE:
        raise MalformedRecord(raw.removeprefix(b"\x00").decode("utf-8", "replace"))
    if media_type == _BATCH:
        raise MalformedRecord("a batch of CloudEvents: write one event a record")
    if raw[:1] == _FRAMED:
        return _unframed(raw)
    begins_json = raw.removeprefix(_BOM)[:1] == b"{"
    if media_type in _PROTOBUF_NAMES and not begins_json:
        return Content(protobuf=raw)
    # The CloudEvents SDK 1 labels a structured event with the type of its data (findings/cloudevents_structured_content_type.sh).
    if begins_json or media_type == CONTENT_TYPE_JSON or media_type.endswith(("/json", "+json")):
        return _event_data(_json(raw), must_be_event=media_type == _STRUCTURED)
    if media_type in _UNTOLD:
        return Content(protobuf=raw)
    raise MalformedRecord(
        f"content-type {content_type!r} is neither {CONTENT_TYPE_PROTOBUF} nor {CONTENT_TYPE_JSON} nor {_STRUCTURED}: "
        "write one of these and name it in the header"
    )


def json_behind_blanks(raw: bytes) -> Content | None:
    """Return the JSON object that begins behind blanks, or None; for what is no Protobuf, which may begin with a blank as well."""
    stripped = raw.lstrip()
    return _event_data(_json(stripped), must_be_event=False) if stripped[:1] == b"{" and stripped != raw else None


def looks_like(raw: bytes) -> str:
    """Return what bytes look like, for the end of a message that says what they are not: "; it looks like …", or nothing."""
    if not raw:
        return "; it is empty: to delete what a compacted topic says of a key, write a record without value (null)"
    return next((f"; it looks like {name}" for magic, name in _LOOKS if raw.startswith(magic)), "")


def _json(raw: bytes) -> Any:
    try:
        value = json.loads(raw)
        if b"\\u" in raw or b"\xed" in raw:
            # Half a surrogate pair is no text: nothing can write it on, and a name that holds one ends Protobuf's parser in a SystemError.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise MalformedRecord(f"not JSON: {error}{looks_like(raw)}") from error
    return value


def _event_data(value: Any, *, must_be_event: bool) -> Content:
    """Return the data of a structured CloudEvent, and anything else as it is."""
    if not _is_event(value):
        if must_be_event:
            raise MalformedRecord(f"content-type {_STRUCTURED}, but the value has no specversion, id, source and type: it is no CloudEvent")
        return Content(json=value)
    wrapping = f" (data of the CloudEvent {_short(value['type'])})"
    encoded, data_type = value.get("data_base64"), value.get("datacontenttype")
    if encoded is not None:
        try:
            data = base64.b64decode(encoded, validate=True)
        except (TypeError, ValueError, binascii.Error) as error:
            raise MalformedRecord(f"data_base64 of a structured CloudEvent is not base64: {error}") from error
        inner = _content_of(data, data_type if isinstance(data_type, str) else None)
        return Content(inner.protobuf, inner.json, wrapping)
    if value.get("data") is None:
        raise MalformedRecord(f"a structured CloudEvent (type {_short(value['type'])}) without data")
    return Content(json=value["data"], wrapping=wrapping)


def _is_event(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("specversion", "id", "source", "type"))


def _unframed(raw: bytes) -> Content:
    schema_id = int.from_bytes(raw[1:_FRAME_BYTES], "big")
    wrapping = f" (in Confluent's framing, schema id {schema_id})"
    body = raw[_FRAME_BYTES:]
    if len(raw) < _FRAME_BYTES:
        raise MalformedRecord(f"it begins like Confluent's framing, but has {len(raw)} bytes only")
    if len(raw) == _INTEGER_BYTES:
        # No event fits into the two or three bytes that the framing leaves.
        raise MalformedRecord(
            f"it is the integer {int.from_bytes(raw, 'big')} in eight bytes (LongSerializer): set the producer's value.serializer to the "
            "Protobuf or JSON one"
        )
    if body[:1] == b"{":
        inner = _event_data(_json(body), must_be_event=False)
        return Content(inner.protobuf, inner.json, wrapping)
    behind = _behind_indexes(body)
    if behind is None:
        raise MalformedRecord(
            f"Confluent's framing (schema id {schema_id}) around neither JSON nor Protobuf, but probably Avro: "
            "set the producer's value.serializer (in Kafka Connect, value.converter) to the Protobuf or JSON one"
        )
    return Content(protobuf=behind, wrapping=wrapping)


def _behind_indexes(body: bytes) -> bytes | None:
    """Return what follows the message indexes; None when there can be none."""
    numbers = _zigzags(body)
    try:
        count, at = next(numbers)
        if not 0 <= count <= _MAX_INDEXES:
            return None
        for _ in range(count):
            index, at = next(numbers)
            if index < 0:
                return None
    except StopIteration:
        return None
    return body[at:]


def _zigzags(body: bytes) -> Iterator[tuple[int, int]]:
    """Yield each zigzag varint, with where it ends."""
    value = shift = 0
    for at, byte in enumerate(body):
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield (value >> 1) ^ -(value & 1), at + 1
            value = shift = 0
        elif shift > 63:
            return


def _short(text: str) -> str:
    return repr(text[:80])
