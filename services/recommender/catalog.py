"""Follows catalog.v1 into memory. Knows nothing about what categories are used for."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from kafka.errors import KafkaError
from tunemesh.catalog.v1 import catalog_item_pb2

from services.common.envelope import Headers, MalformedRecord, parse_value
from services.common.errors import Unavailable
from services.common.ids import entity_key
from services.common.kafka import assigned_consumer, drain_to_end
from services.common.topics import CATALOG

_POLL_MS = 200
# The catalogue changes rarely: an item may take this long to be known, and an idle topic costs the broker next to nothing.
_FETCH_WAIT_MS = 1_000
_RETRY_S = 1.0

_log = logging.getLogger(__name__)


class Record(Protocol):
    """What is used of a Kafka record."""

    @property
    def key(self) -> bytes | None: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102
    @property
    def headers(self) -> Headers | None: ...  # noqa: D102


class ItemIndex:
    """The catalogue in memory; meets `core.Catalog`. One thread writes, any may read."""

    def __init__(self, newest_limit: int) -> None:
        """`newest_limit`: how many ids `newest` returns at most."""
        self._newest_limit = newest_limit
        self._categories: dict[str, tuple[str, ...]] = {}
        self._updated_ms: dict[str, int] = {}
        self._id_of_key: dict[int, str] = {}
        self._newest: tuple[str, ...] = ()
        self.is_ready = False
        """Set by the follower once it has read the whole topic."""

    def __len__(self) -> int:
        return len(self._categories)

    def categories(self, item_id: str) -> Sequence[str]:
        """See core.Catalog."""
        return self._categories.get(item_id, ())

    def newest(self) -> Sequence[str]:
        """See core.Catalog."""
        return self._newest

    def item_id(self, key: int) -> str | None:
        """Return the item id of a table key; None when the catalogue does not hold it."""
        return self._id_of_key.get(key)

    def apply(self, records: Iterable[Record]) -> None:
        """Take records in, in topic order; a value of None deletes the key's item. Unreadable ones are logged and left out."""
        for record in records:
            if record.value is None:
                self._remove((record.key or b"").decode("utf-8", "replace"))
                continue
            try:
                item = parse_value(record.value, record.headers, catalog_item_pb2.CatalogItem)
            except MalformedRecord as error:
                # Not dead-lettered here: every reader of the topic would do so. The feature stream does.
                _log.warning("catalogue: the record with key %r is left out: %s", record.key, error)
                continue
            self._categories[item.item_id] = tuple(item.categories)
            self._updated_ms[item.item_id] = item.updated_at_ms
            self._id_of_key[entity_key(item.item_id)] = item.item_id
        updated = self._updated_ms
        self._newest = tuple(heapq.nsmallest(self._newest_limit, updated, key=lambda item_id: (-updated[item_id], item_id)))

    def _remove(self, item_id: str) -> None:
        if self._categories.pop(item_id, None) is not None:
            del self._updated_ms[item_id]
            self._id_of_key.pop(entity_key(item_id), None)


class CatalogFollower:
    """A thread that keeps an ItemIndex up to date; Kafka may be away at any time, the index then stays as it is."""

    def __init__(self, index: ItemIndex, bootstrap_servers: str, *, client_id: str, topic: str = CATALOG.name) -> None:
        self._index, self._bootstrap_servers, self._client_id, self._topic = index, bootstrap_servers, client_id, topic
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="catalog-follower", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the whole topic was read once; return whether it was. Blocks: call it off the event loop."""
        return self._ready.wait(timeout_s)

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread. Blocks: call it off the event loop."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except (Unavailable, KafkaError) as error:
                # An offset out of range is among these: the broker lost or trimmed its log, so the whole topic is read again.
                _log.warning("%s cannot be followed and is read again in %.0f s: %s", self._topic, _RETRY_S, str(error))
                self._stop.wait(_RETRY_S)

    def _follow(self) -> None:
        consumer = assigned_consumer(
            self._bootstrap_servers,
            self._topic,
            start="beginning",
            client_id=self._client_id,
            bootstrap_timeout_ms=5_000,
            fetch_max_wait_ms=_FETCH_WAIT_MS,
        )
        try:
            started = time.monotonic()
            self._index.apply(drain_to_end(consumer))
            self._index.is_ready = True
            self._ready.set()
            _log.info("catalogue: %d items read in %.1f s", len(self._index), time.monotonic() - started)
            while not self._stop.is_set():
                for batch in consumer.poll(timeout_ms=_POLL_MS).values():
                    self._index.apply(batch)
        finally:
            consumer.close()
