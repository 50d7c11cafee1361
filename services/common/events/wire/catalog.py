"""catalog.v1: from its records to `CatalogItem` and `DeletedItem`, for all who read the topic. It is compacted by item id.

A value is a CatalogItem in Protobuf or JSON, in any wrapping that `content` knows, or a row of a table as Debezium sends it: with its
envelope (before, after, op) or unwrapped by ExtractNewRecordState, each with or without Connect's schema. `debezium` reads those. A delete
is a record without value, the text `null` (what JsonConverter makes of one), or Debezium's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from google.protobuf.message import DecodeError
from tunemesh.catalog.v1 import catalog_item_pb2

from services.common.events.catalog import CatalogChange, CatalogItem, DeletedItem
from services.common.events.content import Content, Headers, MalformedRecord, content_of, header, is_bare_protobuf, looks_like
from services.common.events.envelope import message_of
from services.common.events.limits import check_categories, check_id, check_unit
from services.common.events.wire.debezium import key_id, row_of
from services.common.platform.ids import canonical_id
from services.common.platform.topic_follower import Record

_TYPE = catalog_item_pb2.CatalogItem.DESCRIPTOR.full_name
_OWN_TYPES = "tunemesh."
_FIELDS = {name for field in catalog_item_pb2.CatalogItem.DESCRIPTOR.fields for name in (field.name, field.json_name)}
_MAX_NAMED = 12


def changes_of(records: Iterable[Record], refuse: Callable[[Record, MalformedRecord], None]) -> Iterator[CatalogChange]:
    """Yield what records say, in their order. Every reader of the topic leaves a malformed one out: an item keeps what was known of it.

    Args:
        records: of catalog.v1, in offset order.
        refuse: told of each malformed one.
    """
    for record in records:
        try:
            change = read_change(record.key, record.value, record.headers)
        except MalformedRecord as error:
            refuse(record, error)
            continue
        yield change


def read_change(key: bytes | None, value: bytes | None, headers: Headers | None) -> CatalogChange:
    """Return the item in a record, or which one it deletes. Where the value does not name the id, the key does.

    Raises:
        MalformedRecord: it is no item; or its id cannot be one: nobody could ask for the item, show it or rate it; or it has too many
            categories, or one that is empty or too long.
    """
    if value is None or value.strip() == b"null":
        return _deleted(key_id(key))
    _check_type(headers)
    if is_bare_protobuf(value, header(headers, "content-type")):
        with suppress(DecodeError):  # named below, or JSON behind blanks
            return _item(catalog_item_pb2.CatalogItem.FromString(value), key)
    content = content_of(value.lstrip() if value.lstrip()[:1] == b"{" else value, headers)
    if content.protobuf is not None:
        return _item(message_of(content, catalog_item_pb2.CatalogItem), key)
    row = row_of(content.json, _FIELDS)
    if row.is_deleted:
        return _deleted(_row_id(row.fields) or key_id(key))
    if not _FIELDS & row.fields.keys():
        named = ", ".join(repr(name[:40]) for name in list(row.fields)[:_MAX_NAMED]) or "none"
        raise MalformedRecord(
            f"not a {_TYPE} in JSON{content.wrapping}: it has none of item_id, title, categories, attributes; it has: {named}"
        )
    return _item(message_of(Content(json=row.fields, wrapping=content.wrapping), catalog_item_pb2.CatalogItem), key)


def _row_id(fields: dict[str, object]) -> str:
    found = fields.get("item_id", fields.get("itemId"))
    return str(found) if isinstance(found, str | int) and not isinstance(found, bool) else ""


def _deleted(text: str) -> DeletedItem:
    item_id = canonical_id(text)
    check_id("item_id", item_id, MalformedRecord)
    return DeletedItem(item_id)


def _check_type(headers: Headers | None) -> None:
    """Other messages of the mesh parse as an item: their first field is an id, their second a text."""
    event_type = header(headers, "ce_type")
    if event_type is not None and event_type.startswith(_OWN_TYPES) and event_type != _TYPE:
        raise MalformedRecord(f"ce_type {event_type[:80]!r}: it belongs in another topic")


def _item(message: catalog_item_pb2.CatalogItem, key: bytes | None) -> CatalogItem:
    if not message.ListFields():
        raise MalformedRecord(f"not a {_TYPE}: it has none of its fields{looks_like(b'') if not message.ByteSize() else ''}")
    item_id = canonical_id(message.item_id) or canonical_id(key_id(key))
    check_id("item_id", item_id, MalformedRecord)
    check_categories("categories", message.categories, MalformedRecord)
    check_unit("updated_at_ms", message.updated_at_ms, MalformedRecord)
    return CatalogItem(
        item_id=sys.intern(item_id),
        title=message.title,
        # A catalogue has few categories, and is kept in memory: their strings are shared.
        categories=tuple(map(sys.intern, message.categories)),
        attributes=tuple(sorted(message.attributes.items())),
        updated_at_ms=message.updated_at_ms,
    )
