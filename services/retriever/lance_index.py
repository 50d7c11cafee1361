"""The index on disk: one LanceDB table of passages, with their vectors and a BM25 index of their words.

    INDEX_DIR/passages2_<embedder>.lance     "2": how this program finds words; the embedder's version, or "none": words alone
    INDEX_DIR/writer.lock                    one process writes an index

Each change is one commit of Lance; what searches see is a version that was published, whole. Knows no file, no topic and no model.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from services.common.platform.errors import ConfigurationError, Unavailable
from services.retriever.core.documents import IndexedPassage
from services.retriever.core.index_words import FORMAT, words_of_query
from services.retriever.core.search import Hit
from services.retriever.embedder import Vectors

_PREFIX = f"passages{FORMAT}_"
_ANY_FORMAT = re.compile(r"passages\d+_\w+")
_NO_EMBEDDER = "none"
_TEXT_COLUMNS = ("passage_id", "document_id", "source", "title", "text", "search_text", "words", "content_hash")
_SHOWN_COLUMNS = ["passage_id", "title", "text"]
# Rows that are not in the BM25 index yet are scanned: above this the index is brought up to date, and small fragments become large ones.
_MAX_UNINDEXED_ROWS = 1_000
_MAX_COMMITS = 50
_KEPT_VERSIONS = timedelta(minutes=10)
_COPY_ROWS = 512
# A search that began on the old index ends within this.
_LAST_SEARCHES_S = 1.0
# Longer ones are not indexed: a hash of 512 bits in hexadecimal has 128.
_MAX_WORD_CHARS = 256
# What Lance raises: its own failures come as RuntimeError, damaged files and wrong arguments as ValueError or OSError.
_LANCE_ERRORS = (RuntimeError, ValueError, OSError)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One published version; meets `core.search.Index`."""

    table: Any
    version: str
    embedder_version: str
    num_by_source: dict[str, int]

    @property
    def num_passages(self) -> int:
        """Of all sources."""
        return sum(self.num_by_source.values())

    async def by_vector(self, vector: Vectors, *, source: str, limit: int) -> Sequence[Hit]:
        """Return the passages whose vectors are nearest by cosine, best first. Exact: every vector is looked at."""
        if not self.embedder_version:
            raise Unavailable("this index has no vectors")
        with _lance("searching by vector"):
            query = self.table.query().nearest_to(vector).distance_type("cosine").select([*_SHOWN_COLUMNS, "_distance"])
            return await _hits(query, source, limit)

    async def by_words(self, query: str, *, source: str, limit: int) -> Sequence[Hit]:
        """Return the passages that the query's words find, best first. The query is words, not a language: no sign in it has a meaning."""
        from lancedb.query import MatchQuery

        asked = words_of_query(query)
        if not asked:
            return []
        with _lance("searching by words"):
            words = MatchQuery(asked, "words")  # type: ignore[call-arg] # mypy does not see its defaults
            return await _hits(self.table.query().nearest_to_text(words).select([*_SHOWN_COLUMNS, "_score"]), source, limit)


async def _hits(query: Any, source: str, limit: int) -> Sequence[Hit]:
    if source:
        query = query.where(f"source = {_quoted(source)}")
    rows = (await query.limit(limit).to_arrow()).select(_SHOWN_COLUMNS).to_pylist()
    return [Hit(passage_id=row["passage_id"], title=row["title"], text=row["text"]) for row in rows]


class LanceIndex:
    """The one writer. All methods belong to one task; `snapshot` may be read by any."""

    def __init__(self, folder: Path) -> None:
        """Nothing is opened before `take`."""
        self._folder = folder
        self._lock: IO[str] | None = None
        self._db: Any = None
        self._table: Any = None
        self._name = ""
        self._num_commits = 0
        self._num_rows_changed = 0
        self.snapshot: Snapshot | None = None

    def take(self) -> None:
        """Take the folder for this process alone, until `close`. Quick: what is wrong with it is said before anything else starts.

        Raises:
            ConfigurationError: the folder cannot be written, or another process has the index.
        """
        path = self._folder / "writer.lock"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = path.open("w", encoding="utf-8")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise ConfigurationError(f"another retriever writes the index in {self._folder}: give each a folder of its own") from error
        except OSError as error:
            raise ConfigurationError(f"the index folder {self._folder} cannot be written: {error.strerror}") from error

    async def open(self, embedder: tuple[str, int] | None) -> None:
        """Open what is there, or create an empty index. The folder is taken.

        Args:
            embedder: version and number of dimensions of the one that is loaded; None: a new index will have no vectors.
        Raises:
            Unavailable: Lance failed.
        """
        # Imported here, in a thread: it takes seconds, which neither the port nor who set a wrong value should wait for.
        lancedb = await asyncio.to_thread(importlib.import_module, "lancedb")
        with _lance("opening the index"):
            self._db = await lancedb.connect_async(str(self._folder))
            names = [name for name in (await self._db.list_tables()).tables if _ANY_FORMAT.fullmatch(name)]
            wanted = _PREFIX + _version_of(embedder)
            # While an index is copied for another embedder both are there, and the older one is the whole one.
            older = sorted(name for name in names if name.startswith(_PREFIX) and name != wanted)
            keep = older[0] if older else wanted
            for name in names:
                if name != keep:
                    _log.warning("table %s is of another format, or was not finished: it is dropped", name)
                    await self._db.drop_table(name)
            self._table = await self._opened(keep) if keep in names else None
            if self._table is None:
                keep, self._table = wanted, await self._created(wanted, embedder)
            self._name = keep
            if await self._table.count_rows():
                await self.publish()

    @property
    def embedder_version(self) -> str:
        """Of the embedder whose vectors are wanted for what is put; empty: none are."""
        return _embedder_of(self._name)

    async def hashes(self) -> dict[str, dict[str, str]]:
        """Return source -> document id -> content hash of everything that is indexed."""
        found: dict[str, dict[str, str]] = {}
        with _lance("reading the index"):
            async for batch in await self._table.query().select(["document_id", "source", "content_hash"]).to_batches():
                for row in batch.to_pylist():
                    found.setdefault(row["source"], {})[row["document_id"]] = row["content_hash"]
        return found

    async def put(self, passages: Sequence[IndexedPassage], vectors_ND: Vectors | None, replaced: Sequence[str]) -> None:
        """Put the passages in place of all passages of the documents `replaced`, in one commit. Searches see it after `publish`.

        Args:
            passages: of documents in `replaced`; none of a document that is deleted.
            vectors_ND: float32 [N, D], one a passage; None when the index has no vectors.
            replaced: at most 500 document ids.
        Raises:
            Unavailable: Lance failed; nothing was changed.
        """
        if not replaced:
            return
        # In a thread: finding the words of 500 long documents takes seconds, which no search should wait for.
        rows = await asyncio.to_thread(_rows, passages, vectors_ND, await self._table.schema())
        gone = f"document_id IN ({', '.join(map(_quoted, replaced))})"
        with _lance("writing the index"):
            merge = self._table.merge_insert("passage_id").when_matched_update_all().when_not_matched_insert_all()
            result = await merge.when_not_matched_by_source_delete(gone).execute(rows)
        self._num_commits += 1
        self._num_rows_changed += result.num_inserted_rows + result.num_updated_rows + result.num_deleted_rows

    async def publish(self) -> Snapshot:
        """Make what was put visible to searches, and keep the files in order.

        Raises:
            Unavailable: Lance failed; searches see what they saw.
        """
        snapshot = await self._snapshot()
        if self._num_rows_changed >= _MAX_UNINDEXED_ROWS or self._num_commits >= _MAX_COMMITS:
            # After the new snapshot: what optimizing cleans away, no search of it needs.
            with _lance("optimizing the index"):
                await self._table.optimize(cleanup_older_than=_KEPT_VERSIONS)
            self._num_rows_changed = self._num_commits = 0
            snapshot = await self._snapshot()
        return snapshot

    async def copy_for(self, embedder: tuple[str, int], embed: Callable[[Sequence[str]], Awaitable[Vectors]]) -> None:
        """Make an index with this embedder's vectors of the same passages, and take it in place of this one.

        Searches see the old one until the new one is whole. A process that dies meanwhile starts anew.

        Raises:
            Unavailable: Lance failed; the old index stays.
        """
        started, old_name, old_table = time.monotonic(), self._name, self._table
        name = _PREFIX + _version_of(embedder)
        with _lance("copying the index"):
            await self._db.drop_table(name, ignore_missing=True)
            new_table = await self._created(name, embedder)
            schema = await new_table.schema()
            async for batch in await old_table.query().select(list(_TEXT_COLUMNS)).to_batches(max_batch_length=_COPY_ROWS):
                vectors_ND = await embed(batch.column("search_text").to_pylist())
                await new_table.add(pa.table([*batch.columns, _column_of(vectors_ND)], schema=schema))
            self._name, self._table = name, new_table
            try:
                await new_table.optimize()
                await self._snapshot()
            except BaseException:
                self._name, self._table = old_name, old_table
                raise
            await asyncio.sleep(_LAST_SEARCHES_S)
            await self._db.drop_table(old_name)
        _log.info("the index was copied from %s to %s in %.1f s", old_name, name, time.monotonic() - started)

    def close(self) -> None:
        """Let another process have the index."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def _opened(self, name: str) -> Any:
        """Return the table; None, and nothing left of it, when it is damaged: all of it can be made again from the sources."""
        try:
            table = await self._db.open_table(name)
            await table.count_rows()
            if not await table.list_indices():
                await _index_words(table)
            return table
        except _LANCE_ERRORS:
            _log.exception("table %s is damaged: it is made anew", name)
            await self._db.drop_table(name)
            return None

    async def _created(self, name: str, embedder: tuple[str, int] | None) -> Any:
        fields = [pa.field(column, pa.string()) for column in _TEXT_COLUMNS]
        if embedder is not None:
            fields.append(pa.field("vector", pa.list_(pa.float32(), embedder[1])))
        table = await self._db.create_table(name, schema=pa.schema(fields))
        await _index_words(table)
        return table

    async def _snapshot(self) -> Snapshot:
        with _lance("publishing the index"):
            number = await self._table.version()
            if self.snapshot is not None and self.snapshot.version == f"{_version_of_name(self._name)}.{number}":
                return self.snapshot
            table = await self._db.open_table(self._name)
            await table.checkout(number)
            counts: Counter[str] = Counter()
            async for batch in await table.query().select(["source"]).to_batches():
                counts.update(batch.column("source").to_pylist())
        version = f"{_version_of_name(self._name)}.{number}"
        self.snapshot = Snapshot(table=table, version=version, embedder_version=self.embedder_version, num_by_source=dict(counts))
        return self.snapshot


def _rows(passages: Sequence[IndexedPassage], vectors_ND: Vectors | None, schema: Any) -> Any:
    columns: list[Any] = [pa.array([getattr(passage, column) for passage in passages], pa.string()) for column in _TEXT_COLUMNS]
    if vectors_ND is not None:
        columns.append(_column_of(vectors_ND))
    return pa.table(columns, schema=schema)


async def _index_words(table: Any) -> None:
    from lancedb.index import FTS

    # `index_words` decides where words end. No word is left out of the index: "The Who" is a title.
    words = FTS(
        base_tokenizer="whitespace",
        language="English",
        stem=True,
        remove_stop_words=False,
        ascii_folding=True,
        with_position=False,
        max_token_length=_MAX_WORD_CHARS,
    )
    await table.create_index("words", config=words)


def _column_of(vectors_ND: Vectors) -> Any:
    num_dims = vectors_ND.shape[1]
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors_ND).reshape(-1)), num_dims)


def _version_of(embedder: tuple[str, int] | None) -> str:
    return embedder[0] if embedder is not None else _NO_EMBEDDER


def _version_of_name(name: str) -> str:
    return name.removeprefix(_PREFIX)


def _embedder_of(name: str) -> str:
    version = _version_of_name(name)
    return version if version != _NO_EMBEDDER else ""


def _quoted(text: str) -> str:
    """A string of Lance's SQL: only the quote itself has a meaning inside."""
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def _lance(doing: str) -> Iterator[None]:
    """Translate Lance's errors at this edge."""
    try:
        yield
    except _LANCE_ERRORS as error:
        raise Unavailable(f"{doing} failed: {' '.join(str(error).split())[:500]}") from error
