"""catalog.v1: from its records to `CatalogItem` and `DeletedItem`, for all who read the topic. It is compacted by item id.

The forms that a record may have: `compacted`. A catalogue of before has its attributes as texts (field 4), which stay texts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

from tunemesh.catalog.v1 import catalog_item_pb2

from services.common.events.attributes import Attributes
from services.common.events.catalog import CatalogChange, CatalogItem, DeletedItem
from services.common.events.content import Headers, MalformedRecord
from services.common.events.limits import check_categories
from services.common.events.wire.attributes import attributes_of_values
from services.common.events.wire.compacted import CompactedReader
from services.common.platform.topic_follower import Record


def _attributes_in(message: catalog_item_pb2.CatalogItem) -> Attributes:
    typed = attributes_of_values("typed_attributes", message.typed_attributes, MalformedRecord)
    return {**message.attributes, **typed} if message.attributes else typed


_READER = CompactedReader(
    catalog_item_pb2.CatalogItem, id_name="item_id", attribute_names=("attributes", "typed_attributes"), attributes_in=_attributes_in
)


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
            categories, or one that is empty or too long; or its attributes break `services.common.events.attributes`.
    """
    entry = _READER.read(key, value, headers)
    message = entry.message
    if message is None:
        return DeletedItem(entry.id)
    check_categories("categories", message.categories, MalformedRecord)
    return CatalogItem(
        item_id=sys.intern(entry.id),
        title=message.title,
        # A catalogue has few categories, and is kept in memory: their strings are shared.
        categories=tuple(map(sys.intern, message.categories)),
        attributes=entry.attributes,
        updated_at_ms=message.updated_at_ms,
    )
