"""Follows catalog.v1 and knows the categories of every item. The topic has one partition and every worker needs all of it: no group."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiokafka.structs import TopicPartition

from services.common.events.catalog import DeletedItem
from services.common.events.content import MalformedRecord
from services.common.events.topics import CATALOG
from services.common.events.wire.catalog import read_change
from streams.logs import FOLLOWING_WAIT_MS, LogReader

_POLL_MS = 500

_log = logging.getLogger(__name__)


class CatalogFollower:
    """Categories by item id. `ready` is set once the catalogue has been read to the end that it had at the start."""

    def __init__(self) -> None:
        """Empty."""
        self.ready = asyncio.Event()
        self._categories: dict[str, tuple[str, ...]] = {}

    def categories_of(self, item_id: str) -> tuple[str, ...]:
        """Return the item's categories; none for an unknown item."""
        return self._categories.get(item_id, ())

    async def follow(self, reader: LogReader) -> None:
        """Read the topic from its beginning, for ever."""
        end = await reader.last_end(CATALOG.name, 0)
        consumer, at = reader.new_consumer(fetch_wait_ms=FOLLOWING_WAIT_MS), TopicPartition(CATALOG.name, 0)
        await consumer.start()
        try:
            consumer.assign([at])
            consumer.seek(at, (await consumer.beginning_offsets([at]))[at])
            while True:
                if not self.ready.is_set() and await consumer.position(at) >= end:
                    _log.info("catalogue read: %d items", len(self._categories))
                    self.ready.set()
                for record in (await consumer.getmany(at, timeout_ms=_POLL_MS)).get(at, ()):
                    self.take(record)
        finally:
            await consumer.stop()

    def take(self, record: Any) -> None:
        """Take one record of the topic in. A malformed one is logged and skipped: the item keeps what was known."""
        try:
            change = read_change(record.key, record.value, tuple(record.headers or ()))
        except MalformedRecord as error:
            _log.warning("catalog.v1 offset %d is skipped: %s", record.offset, error)
            return
        if isinstance(change, DeletedItem):
            self._categories.pop(change.item_id, None)
        else:
            self._categories[change.item_id] = change.categories
