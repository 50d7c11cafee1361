"""catalog.v1: from its records to `CatalogItem`. The topic is compacted by item id; a record without a value deletes its key's item."""

from __future__ import annotations

import sys

from tunemesh.catalog.v1 import catalog_item_pb2

from services.common.events.catalog import CatalogItem
from services.common.events.envelope import Headers, MalformedRecord, parse_value
from services.common.events.limits import check_categories, check_id
from services.common.platform.ids import canonical_id


def read_item(key: bytes | None, value: bytes | None, headers: Headers | None) -> CatalogItem:
    """Return the item in a record. Where the value does not name its id, the key does.

    Every reader of the topic leaves a malformed record out and logs it: an item keeps what was known of it.

    Raises:
        MalformedRecord: it does not parse; or its id cannot be one: nobody could ask for the item, show it or rate it; or it has too many
            categories, or one that is empty or too long.
    """
    message = parse_value(value, headers, catalog_item_pb2.CatalogItem)
    item_id = canonical_id(message.item_id) or deleted_item(key)
    check_id("item_id", item_id, MalformedRecord)
    check_categories("categories", message.categories, MalformedRecord)
    return CatalogItem(
        item_id=sys.intern(item_id),
        title=message.title,
        # A catalogue has few categories, and is kept in memory: their strings are shared.
        categories=tuple(map(sys.intern, message.categories)),
        attributes=tuple(sorted(message.attributes.items())),
        updated_at_ms=message.updated_at_ms,
    )


def deleted_item(key: bytes | None) -> str:
    """Return the id of the item that a record without a value deletes."""
    return canonical_id((key or b"").decode("utf-8", "replace"))
