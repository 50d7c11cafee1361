"""Follows catalog.v1 into memory. Knows nothing about what categories are used for."""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Sequence
from itertools import repeat

from typing_extensions import override

from services.common.events.catalog import CatalogItem, DeletedItem
from services.common.events.content import MalformedRecord
from services.common.events.dead_letter_writer import Refused, only_log
from services.common.events.wire.catalog import changes_of
from services.common.platform.ids import entity_key
from services.common.platform.topic_follower import Reader, Record
from services.common.ranker.declared.plan import Part, Plan
from services.recommender.core import Catalog
from services.recommender.item_attributes import ItemAttributes

_log = logging.getLogger(__name__)

# Entries of changed or deleted items, beside those of as many items as there are, before they are swept out.
_MAX_STALE = 1_000


class ItemIndex(Catalog, Reader):
    """The catalogue in memory; meets `core.Catalog`, and reads what a `TopicFollower` brings. One thread writes, any may read."""

    def __init__(self, newest_limit: int, on_refused: Refused = only_log, plan: Plan | None = None) -> None:
        """Empty.

        Args:
            newest_limit: how many ids `newest` returns at most.
            on_refused: told of every record that is left out, and why.
            plan: of the declared features that read items' attributes; None: there are none.
        """
        self._attributes = ItemAttributes(plan or Plan([]))
        self._newest_limit, self._on_refused = newest_limit, on_refused
        self._categories: dict[str, tuple[str, ...]] = {}
        self._updated_ms: dict[str, int] = {}
        self._id_of_key: dict[int, str] = {}
        self._newest: tuple[str, ...] = ()
        # (when, negative; item id) of every change: an entry that is not its item's present one is passed over.
        self._by_age: list[tuple[int, str]] = []
        self._key_changes: deque[tuple[int, bool]] = deque()
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
    def categories_of(self, item_ids: Sequence[str]) -> Sequence[Sequence[str]]:
        return list(map(self._categories.get, item_ids, repeat(())))

    @override
    def part(self, item_ids: Sequence[str]) -> Part:
        return self._attributes.part(item_ids)

    @override
    def newest(self) -> Sequence[str]:
        return self._newest

    def take_key_changes(self) -> list[tuple[int, bool]]:
        """Return (table key, whether its item is there now) of what came or went since the last call, in order. For one caller."""
        return [self._key_changes.popleft() for _ in range(len(self._key_changes))]

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
        """Take records in, in topic order. Unreadable ones are left out, logged and told."""
        changed: dict[str, CatalogItem] = {}
        for change in changes_of(records, self._refuse):
            if isinstance(change, DeletedItem):
                changed.pop(change.item_id, None)
                self._remove(change.item_id)
                continue
            changed[change.item_id] = change
            self._put(change)
        self._attributes.put(changed)
        if records:
            self._find_newest()

    def _put(self, item: CatalogItem) -> None:
        item_id, key = item.item_id, entity_key(item.item_id)
        if self._updated_ms.get(item_id) != item.updated_at_ms:
            heapq.heappush(self._by_age, (-item.updated_at_ms, item_id))
        self._categories[item_id] = item.categories
        self._updated_ms[item_id] = item.updated_at_ms
        if key not in self._id_of_key:
            self._key_changes.append((key, True))
        self._id_of_key[key] = item_id

    def _refuse(self, record: Record, error: MalformedRecord) -> None:
        _log.warning("catalogue: the record at offset %d with key %r is left out: %s", record.offset, (record.key or b"")[:80], error)
        self._on_refused(record, str(error))

    def _remove(self, item_id: str) -> None:
        self._attributes.remove(item_id)
        if self._categories.pop(item_id, None) is not None:
            del self._updated_ms[item_id]
            key = entity_key(item_id)
            self._id_of_key.pop(key, None)
            self._key_changes.append((key, False))

    def _find_newest(self) -> None:
        """Costs the same for every size of the catalogue: entries that have been passed over are gone for good."""
        if len(self._by_age) > 2 * len(self._updated_ms) + _MAX_STALE:
            self._by_age = [(-updated_ms, item_id) for item_id, updated_ms in self._updated_ms.items()]
            heapq.heapify(self._by_age)
        found: list[tuple[int, str]] = []
        while self._by_age and len(found) < self._newest_limit:
            entry = heapq.heappop(self._by_age)
            if self._updated_ms.get(entry[1]) == -entry[0] and (not found or found[-1] != entry):
                found.append(entry)
        for entry in found:
            heapq.heappush(self._by_age, entry)
        self._newest = tuple(item_id for _, item_id in found)
