"""Keeps the index equal to its sources: the loop that looks at the folder and the catalogue, embeds what changed, and publishes it.

Knows neither Lance nor onnxruntime nor Kafka: it moves documents from the sources through the embedder to the index.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from services.common.platform.errors import Unavailable
from services.retriever.catalog import CatalogDocuments
from services.retriever.core.documents import CATALOG, FILES, ChunkLimits, CutDocument, Document, IndexedPassage, cut, passages_of
from services.retriever.embedder import Embedder, LateEmbedder
from services.retriever.files import DocumentFolder
from services.retriever.lance_index import LanceIndex

MAX_DOCUMENTS_A_COMMIT = 500

_RETRY_S = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """What one round did."""

    num_documents: int
    num_deleted: int
    seconds: float


class Indexer:
    """One task runs it; the others read `index.snapshot` and the properties."""

    def __init__(
        self,
        index: LanceIndex,
        embedder: LateEmbedder,
        chunks: ChunkLimits,
        *,
        folder: DocumentFolder | None,
        catalog: CatalogDocuments,
        poll_s: float,
        on_indexed: Callable[[Indexed], None],
    ) -> None:
        """Take the parts; `folder` is None when no files are searched. `poll_s`: how often the folder is looked at."""
        self._index, self._embedder, self._chunks = index, embedder, chunks
        self._folder, self._catalog, self._poll_s, self._on_indexed = folder, catalog, poll_s, on_indexed
        self._hashes: dict[str, dict[str, str]] = {}
        self._wake = asyncio.Event()
        self.first_look_done = asyncio.Event()
        """Set once the folder has been indexed and something can be searched, if only an empty index."""
        self.catalog_offset: int | None = None
        """Next offset of catalog.v1; None until its records, as they were when it was first read, are indexed."""

    def wake(self) -> None:
        """Look now. Call on the event loop."""
        self._wake.set()

    async def run(self) -> None:
        """Index for ever, in a folder that is taken. What fails is tried again: searches see the last whole version meanwhile."""
        loaded = await self._embedder.look()
        while not await self._tried("opening", self._open(loaded)):
            await asyncio.sleep(_RETRY_S)
        while True:
            self._wake.clear()
            if not await self._tried("indexing", self.round()):
                await asyncio.sleep(_RETRY_S)
                continue
            self.first_look_done.set()
            try:
                await asyncio.wait_for(self._wake.wait(), self._poll_s)
            except TimeoutError:
                continue

    async def _open(self, loaded: Embedder | None) -> None:
        await self._index.open(_identity(loaded))
        self._hashes = await self._index.hashes()

    async def _tried(self, doing: str, work: Awaitable[None]) -> bool:
        try:
            await work
        except Unavailable as error:
            _log.warning("%s is tried again in %.0f s: %s", doing, _RETRY_S, error)
            return False
        return True

    async def round(self) -> None:
        """Bring the index up to date once.

        Raises:
            Unavailable: the index failed; what was not indexed is tried with the next round.
        """
        loaded = await self._embedder.look()
        if loaded is not None and loaded.version != self._index.embedder_version:
            await self._index.copy_for((loaded.version, loaded.num_dims), lambda texts: self._embedder.embed_documents(loaded, texts))
        if loaded is None and self._index.embedder_version:
            # What the index holds stays searchable by words; what is new cannot be put beside it without vectors.
            if self._index.snapshot is None:
                await self._index.publish()
            return
        await self._files(loaded)
        await self._items(loaded)
        if self._index.snapshot is None:
            await self._index.publish()

    async def _files(self, loaded: Embedder | None) -> None:
        if self._folder is None:
            await self._apply(FILES, {}, list(self._hashes.get(FILES, {})), loaded)
            return
        more = True
        while more:
            try:
                changes = await asyncio.to_thread(self._folder.look, dict(self._hashes.get(FILES, {})))
                more = changes.more
                await self._apply(FILES, {document.document_id: document for document in changes.documents}, changes.gone, loaded)
            except Unavailable:
                self._folder.forget()
                raise

    async def _items(self, loaded: Embedder | None) -> None:
        changes = self._catalog.take()
        if changes is None:
            return
        indexed = self._hashes.get(CATALOG, {})
        documents = {name: item for name, item in changes.documents.items() if item and indexed.get(name) != item.content_hash}
        gone = [name for name, item in changes.documents.items() if item is None and name in indexed]
        if changes.is_whole:
            gone.extend(name for name in indexed if name not in changes.documents)
        try:
            await self._apply(CATALOG, documents, gone, loaded)
        except Unavailable:
            self._catalog.give_back(changes)
            raise
        self.catalog_offset = changes.next_offset

    def _cut(self, documents: Sequence[Document | CutDocument]) -> list[IndexedPassage]:
        """Files come cut, by the process that read them; items of the catalogue are short."""
        whole = (document if isinstance(document, CutDocument) else cut(document, self._chunks) for document in documents)
        return [passage for document in whole for passage in passages_of(document)]

    async def _apply(
        self, source: str, documents: Mapping[str, Document] | Mapping[str, CutDocument], gone: Sequence[str], loaded: Embedder | None
    ) -> None:
        if not documents and not gone:
            return
        started = time.monotonic()
        hashes = self._hashes.setdefault(source, {})
        names = [*gone, *documents]
        for start in range(0, len(names), MAX_DOCUMENTS_A_COMMIT):
            some = names[start : start + MAX_DOCUMENTS_A_COMMIT]
            passages = await asyncio.to_thread(self._cut, [documents[name] for name in some if name in documents])
            vectors_ND = None
            if loaded is not None:
                vectors_ND = await self._embedder.embed_documents(loaded, [passage.search_text for passage in passages])
            await self._index.put(passages, vectors_ND, some)
            for name in some:
                hashes.pop(name, None)
                if name in documents:
                    hashes[name] = documents[name].content_hash
            # Each time: a large catalogue can be searched, as far as it is indexed, before all of it is.
            snapshot = await self._index.publish()
        done = Indexed(num_documents=len(documents), num_deleted=len(gone), seconds=time.monotonic() - started)
        _log.info(
            "%s: %d documents indexed, %d deleted in %.1f s; %d passages, version %s",
            *(source, done.num_documents, done.num_deleted, done.seconds, snapshot.num_passages, snapshot.version),
        )
        self._on_indexed(done)


def _identity(loaded: Embedder | None) -> tuple[str, int] | None:
    return (loaded.version, loaded.num_dims) if loaded is not None else None
