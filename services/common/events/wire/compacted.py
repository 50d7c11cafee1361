"""Records of topics that hold the present state of things by id: catalog.v1 and profiles.v1. One reader for all of them.

A value is the topic's message in Protobuf or JSON, in any wrapping that `content` knows, or a row of a table as Debezium sends it: with its
envelope (before, after, op) or unwrapped by ExtractNewRecordState, each with or without Connect's schema. `debezium` reads those. A delete
is a record without value, the text `null` (what JsonConverter makes of one), or Debezium's. The id is the value's, or else the key's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from services.common.events.attributes import Attributes, check
from services.common.events.content import Content, Headers, MalformedRecord, content_of, header, is_bare_protobuf, looks_like
from services.common.events.envelope import message_of
from services.common.events.limits import check_id, check_unit
from services.common.events.wire.attributes import attributes_of_json
from services.common.events.wire.debezium import key_id, row_of
from services.common.platform.ids import canonical_id

MessageT = TypeVar("MessageT", bound=Message)

_OWN_TYPES = "tunemesh."
_MAX_NAMED = 12


@dataclass(frozen=True, slots=True)
class Entry(Generic[MessageT]):
    """What a record says of one thing.

    Attributes:
        id: its, in canonical form; 1 to 128 bytes.
        message: what is said; None: the thing is deleted.
        attributes: its, within their limits.
    """

    id: str
    message: MessageT | None
    attributes: Attributes = field(default_factory=dict)


class CompactedReader(Generic[MessageT]):
    """Reads the records of one topic. Its message has `updated_at_ms`, and an id of 1 to 128 bytes."""

    def __init__(
        self,
        message_class: type[MessageT],
        *,
        id_name: str,
        attribute_names: tuple[str, ...],
        attributes_in: Callable[[MessageT], Attributes],
    ) -> None:
        """Know a topic.

        Args:
            message_class: of its values.
            id_name: the field that is the id.
            attribute_names: the fields that are attributes; where two name the same attribute, the later one has it.
            attributes_in: the attributes of a message that came as Protobuf; raises MalformedRecord.
        """
        self._message_class, self._id_name, self._attributes_in = message_class, id_name, attributes_in
        descriptor = message_class.DESCRIPTOR
        self._type = descriptor.full_name
        self._field_names = [each.name for each in descriptor.fields]
        self._names = {name for each in descriptor.fields for name in (each.name, each.json_name)}
        self._id_names = tuple(dict.fromkeys((id_name, descriptor.fields_by_name[id_name].json_name)))
        fields = [descriptor.fields_by_name[name] for name in attribute_names]
        self._attribute_names = tuple(dict.fromkeys(name for each in fields for name in (each.name, each.json_name)))

    def read(self, key: bytes | None, value: bytes | None, headers: Headers | None) -> Entry[MessageT]:
        """Return what a record says.

        Raises:
            MalformedRecord: it is nothing that the topic holds; or its id cannot be one: nobody could ask for it; or its attributes break
                their limits, or its time is of another unit.
        """
        if value is None or value.strip() == b"null":
            return self._deleted(self._key_id(key))
        self._check_type(headers)
        if is_bare_protobuf(value, header(headers, "content-type")):
            with suppress(DecodeError):  # named below, or JSON behind blanks
                return self._of_protobuf(self._message_class.FromString(value), key)
        content = content_of(value.lstrip() if value.lstrip()[:1] == b"{" else value, headers)
        if content.protobuf is not None:
            return self._of_protobuf(message_of(content, self._message_class), key)
        row = row_of(content.json, self._names)
        if row.is_deleted:
            return self._deleted(self._row_id(row.fields) or self._key_id(key))
        return self._of_json(row.fields, content.wrapping, key)

    def _of_protobuf(self, message: MessageT, key: bytes | None) -> Entry[MessageT]:
        if not message.ListFields():
            raise MalformedRecord(f"not a {self._type}: it has none of its fields{looks_like(b'') if not message.ByteSize() else ''}")
        return self._entry(message, self._attributes_in(message), key)

    def _of_json(self, row: dict[str, Any], wrapping: str, key: bytes | None) -> Entry[MessageT]:
        if not self._names & row.keys():
            named = ", ".join(repr(name[:40]) for name in list(row)[:_MAX_NAMED]) or "none"
            raise MalformedRecord(f"not a {self._type} in JSON{wrapping}: it has none of {', '.join(self._field_names)}; it has: {named}")
        attributes: dict[str, Any] = {}
        for name in self._attribute_names:
            if row.get(name) is not None:
                attributes |= attributes_of_json(name, row[name], MalformedRecord)
        others = {name: column for name, column in row.items() if name not in self._attribute_names}
        message = message_of(Content(json=others, wrapping=wrapping), self._message_class)
        if not attributes and not message.ListFields():
            raise MalformedRecord(f"not a {self._type}: it has none of its fields")
        return self._entry(message, attributes, key)

    def _entry(self, message: MessageT, attributes: Attributes, key: bytes | None) -> Entry[MessageT]:
        check("attributes", attributes, MalformedRecord)  # of several fields together
        check_unit("updated_at_ms", message.updated_at_ms, MalformedRecord)  # type: ignore[attr-defined] # every message of these has it
        entity_id = canonical_id(getattr(message, self._id_name)) or canonical_id(self._key_id(key))
        check_id(self._id_name, entity_id, MalformedRecord)
        return Entry(entity_id, message, dict(sorted(attributes.items())))

    def _deleted(self, text: str) -> Entry[MessageT]:
        entity_id = canonical_id(text)
        check_id(self._id_name, entity_id, MalformedRecord)
        return Entry(entity_id, None)

    def _key_id(self, key: bytes | None) -> str:
        return key_id(key, self._id_name)

    def _row_id(self, fields: dict[str, object]) -> str:
        found = next((fields[name] for name in self._id_names if name in fields), None)
        return str(found) if isinstance(found, str | int) and not isinstance(found, bool) else ""

    def _check_type(self, headers: Headers | None) -> None:
        """Other messages of the mesh parse as this one: their first field is an id, their second a text."""
        event_type = header(headers, "ce_type")
        if event_type is not None and event_type.startswith(_OWN_TYPES) and event_type != self._type:
            raise MalformedRecord(f"ce_type {event_type[:80]!r}: it belongs in another topic")
