"""Follows catalog.v1 into memory. Knows nothing about what categories are used for."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Sequence

from typing_extensions import override

from services.common.events.envelope import MalformedRecord
from services.common.events.wire.catalog import deleted_item, read_item
from services.common.platform.ids import entity_key
from services.common.platform.topic_follower import Reader, Record
from services.recommender.core import Catalog

_log = logging.getLogger(__name__)


class ItemIndex(Catalog, Reader):
    """The catalogue in memory; meets `core.Catalog`, and reads what a `TopicFollower` brings. One thread writes, any may read."""

    def __init__(self, newest_limit: int) -> None:
        """`newest_limit`: how many ids `newest` returns at most."""
        self._newest_limit = newest_limit
        self._categories: dict[str, tuple[str, ...]] = {}
        self._updated_ms: dict[str, int] = {}
        self._id_of_key: dict[int, str] = {}
        self._newest: tuple[str, ...] = ()
        self._is_ready = False

    def __len__(self) -> int:
        return len(self._categories)

    @property
    @override
    def is_ready(self) -> bool:
        return self._is_ready

    @override
    def categories(self, item_id: str) -> Sequence[str]:
        return self._categories.get(item_id, ())

    @override
    def newest(self) -> Sequence[str]:
        return self._newest

    def item_id(self, key: int) -> str | None:
        """Return the item id of a table key; None when the catalogue does not hold it."""
        return self._id_of_key.get(key)

    @override
    def begin(self, records: Sequence[Record]) -> None:
        """Take the whole topic in. What a broker without its old log no longer holds is kept: stale beats empty."""
        self.extend(records)
        self._is_ready = True

    @override
    def extend(self, records: Sequence[Record]) -> None:
        """Take records in, in topic order; a value of None deletes the key's item. Unreadable ones are logged and left out."""
        for record in records:
            if record.value is None:
                self._remove(deleted_item(record.key))
                continue
            try:
                item = read_item(record.key, record.value, record.headers)
            except MalformedRecord as error:
                _log.warning("catalogue: the record with key %r is left out: %s", record.key, error)
                continue
            self._categories[item.item_id] = item.categories
            self._updated_ms[item.item_id] = item.updated_at_ms
            self._id_of_key[entity_key(item.item_id)] = item.item_id
        updated = self._updated_ms
        self._newest = tuple(heapq.nsmallest(self._newest_limit, updated, key=lambda item_id: (-updated[item_id], item_id)))

    def _remove(self, item_id: str) -> None:
        if self._categories.pop(item_id, None) is not None:
            del self._updated_ms[item_id]
            self._id_of_key.pop(entity_key(item_id), None)
