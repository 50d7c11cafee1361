"""catalog.v1 as documents: what its follower brings waits here until it is indexed. Knows no index."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from typing_extensions import override

from services.common.events.catalog import CatalogItem, DeletedItem
from services.common.events.content import MalformedRecord
from services.common.events.wire.catalog import changes_of
from services.common.language.items import sentences_of, words_of
from services.common.platform.topic_follower import Reader, Record
from services.retriever.core.documents import CATALOG, ChunkLimits, Document, Section, hash_of
from services.retriever.core.text import clean, paragraphs_of

_ID_PREFIX = f"{CATALOG}:"
_MAX_ATTRIBUTES = 100

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogChanges:
    """What the topic said since the last time.

    Attributes:
        documents: by document id, the newest each; None: the item was deleted.
        is_whole: whether `documents` is the whole catalogue, so that what it does not name is gone.
        next_offset: of the topic, once these are indexed.
    """

    documents: dict[str, Document | None] = field(default_factory=dict)
    is_whole: bool = False
    next_offset: int = 0


def document_of(item: CatalogItem, chunks: ChunkLimits) -> Document:
    """Return an item as a document: categories and attributes in a sentence each, so that a model can answer from them."""
    short: list[tuple[str, str]] = []
    long: list[str] = []
    for name, value in islice(words_of(item.attributes), _MAX_ATTRIBUTES):
        text = clean(value)
        if "\n" in text or len(text) > 200:
            long.extend(paragraphs_of(text))
        elif text:
            short.append((clean(name), text))
    title = clean(item.title).replace("\n", " ") or item.item_id
    # An item of nothing but a title is found by it all the same.
    first = " ".join(sentences_of(item.categories, short)) or f"{title}."
    content = "\x00".join((title, first, *long))
    return Document(
        document_id=f"{_ID_PREFIX}{item.item_id}",
        source=CATALOG,
        title=title,
        sections=(Section(heading="", paragraphs=(first, *long)),),
        content_hash=hash_of(content.encode(), chunks),
    )


class CatalogDocuments(Reader):
    """Reads what a `TopicFollower` brings; the indexer takes it from here. Bounded by the catalogue: an item waits once."""

    def __init__(self, chunks: ChunkLimits, on_change: Callable[[], None]) -> None:
        """`on_change` is called in the follower's thread whenever something waits."""
        self._chunks, self._on_change = chunks, on_change
        self._lock = threading.Lock()
        self._waiting = CatalogChanges()
        self._has_news = False

    @override
    def begin(self, records: Sequence[Record]) -> None:
        """Take the whole topic in. An empty topic changes nothing: a broker that lost its log has no news of the items."""
        documents = self._documents_of(records)
        is_whole = any(document is not None for document in documents.values())
        with self._lock:
            self._waiting = CatalogChanges(documents=documents, is_whole=is_whole, next_offset=_next_offset(records, 0))
            self._has_news = True
        self._on_change()

    @override
    def extend(self, records: Sequence[Record]) -> None:
        documents = self._documents_of(records)
        with self._lock:
            waiting = self._waiting
            self._waiting = CatalogChanges(
                documents={**waiting.documents, **documents},
                is_whole=waiting.is_whole,
                next_offset=_next_offset(records, waiting.next_offset),
            )
            self._has_news = True
        self._on_change()

    def take(self) -> CatalogChanges | None:
        """Return what waits, and begin anew; None when nothing does."""
        with self._lock:
            if not self._has_news:
                return None
            taken, self._has_news = self._waiting, False
            self._waiting = CatalogChanges(next_offset=taken.next_offset)
            return taken

    def give_back(self, taken: CatalogChanges) -> None:
        """Put back what could not be indexed; what came meanwhile is newer."""
        with self._lock:
            newer = self._waiting
            if not newer.is_whole:
                documents = {**taken.documents, **newer.documents}
                self._waiting = CatalogChanges(documents=documents, is_whole=taken.is_whole, next_offset=newer.next_offset)
            self._has_news = True

    def _documents_of(self, records: Sequence[Record]) -> dict[str, Document | None]:
        documents: dict[str, Document | None] = {}
        for change in changes_of(records, _leave_out):
            if isinstance(change, DeletedItem):
                documents[f"{_ID_PREFIX}{change.item_id}"] = None
                continue
            document = document_of(change, self._chunks)
            documents[document.document_id] = document
        return documents


def _leave_out(record: Record, error: MalformedRecord) -> None:
    _log.warning("catalogue: the record at offset %d with key %r is left out: %s", record.offset, (record.key or b"")[:80], error)


def _next_offset(records: Sequence[Record], otherwise: int) -> int:
    return max((record.offset + 1 for record in records), default=otherwise)
