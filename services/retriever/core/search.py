"""Hybrid search: what is a valid query, both halves at once, one answer from what answered. Pure but for index and embedder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from services.common.events.chat import MAX_PASSAGES
from services.common.events.limits import MAX_QUERY_BYTES, check_written
from services.common.platform.errors import InvalidInput, Unavailable
from services.retriever.core.documents import CATALOG, SOURCES
from services.retriever.core.fusion import reciprocal_rank_fusion

DEFAULT_LIMIT = 4
VECTOR_SEARCH_UNAVAILABLE = "vector_search_unavailable"
WORD_SEARCH_UNAVAILABLE = "word_search_unavailable"
CATALOG_UNAVAILABLE = "catalog_unavailable"

# Fusion needs more than it returns: a passage that only one half puts far down can still win by the other's first rank.
_DEPTH_FACTOR = 4
_MIN_DEPTH = 40

VectorT = TypeVar("VectorT")
VectorT_contra = TypeVar("VectorT_contra", contravariant=True)
VectorT_co = TypeVar("VectorT_co", covariant=True)


class NoIndex(Unavailable):
    """Nothing has been indexed yet. Retrying later helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A passage as the index has it."""

    passage_id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A hit with its fused score."""

    hit: Hit
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Best first. `degraded_reason` is empty when both halves looked at all of the sources."""

    found: tuple[Found, ...]
    index_version: str
    degraded_reason: str


class Index(Protocol[VectorT_contra]):
    """One version of the index; it never changes."""

    @property
    def version(self) -> str:
        """Names the content and the embedder."""
        ...

    @property
    def embedder_version(self) -> str:
        """Of the embedder that made its vectors; empty when it has none."""
        ...

    async def by_vector(self, vector: VectorT_contra, *, source: str, limit: int) -> Sequence[Hit]:
        """Return the nearest passages, nearest first. `source` may be empty: all. Raises Unavailable."""
        ...

    async def by_words(self, query: str, *, source: str, limit: int) -> Sequence[Hit]:
        """Return the passages of highest BM25, best first; those without any word of the query are not among them. Raises Unavailable."""
        ...


class QueryEmbedder(Protocol[VectorT_co]):
    """Makes the vector of a query."""

    async def embed_query(self, query: str, *, embedder_version: str) -> VectorT_co:
        """Return the vector. Raises Unavailable when that embedder is not here: vectors of two embedders cannot be compared."""
        ...


class Searcher(Generic[VectorT]):
    """Answers Search."""

    def __init__(
        self, current: Callable[[], Index[VectorT] | None], embedder: QueryEmbedder[VectorT], catalog_is_followed: Callable[[], bool]
    ) -> None:
        """Take the parts.

        Args:
            current: returns the newest whole version, None when there is none yet.
            embedder: of queries.
            catalog_is_followed: whether the catalogue's passages are those of the topic, as far as it has been read.
        """
        self._current, self._embedder, self._catalog_is_followed = current, embedder, catalog_is_followed

    async def search(self, query: str, *, limit: int, source: str) -> Answer:
        """Return the best passages of one version of the index.

        Raises:
            InvalidInput: a field is out of its range; the message names it.
            NoIndex: nothing has been indexed yet.
            Unavailable: neither half answered.
        """
        limit = _check(query, limit, source) or DEFAULT_LIMIT
        index = self._current()
        if index is None:
            raise NoIndex("no passage has been indexed yet; retry later")
        depth = max(_MIN_DEPTH, _DEPTH_FACTOR * limit)
        near, worded = await asyncio.gather(
            self._by_vector(index, query, source, depth), index.by_words(query, source=source, limit=depth), return_exceptions=True
        )
        rankings: list[list[Hit]] = []
        reasons: list[str] = []
        for half, reason in ((near, VECTOR_SEARCH_UNAVAILABLE), (worded, WORD_SEARCH_UNAVAILABLE)):
            if isinstance(half, Unavailable):
                reasons.append(reason)
            elif isinstance(half, BaseException):
                raise half
            else:
                rankings.append(list(half))
        if not rankings:
            raise Unavailable(f"neither half of the search answered: {near}; {worded}")
        if source in ("", CATALOG) and not self._catalog_is_followed():
            reasons.append(CATALOG_UNAVAILABLE)
        return Answer(found=_fuse(rankings, limit), index_version=index.version, degraded_reason=",".join(reasons))

    async def _by_vector(self, index: Index[VectorT], query: str, source: str, depth: int) -> Sequence[Hit]:
        vector = await self._embedder.embed_query(query, embedder_version=index.embedder_version)
        return await index.by_vector(vector, source=source, limit=depth)


def _check(query: str, limit: int, source: str) -> int:
    check_written("query", query, MAX_QUERY_BYTES, InvalidInput)
    if limit > MAX_PASSAGES:
        raise InvalidInput(f"limit: {limit} is over {MAX_PASSAGES}")
    if source not in ("", *SOURCES):
        raise InvalidInput(f"source: {source[:80]!r} is none of {', '.join(SOURCES)}")
    return limit


def _fuse(rankings: Sequence[Sequence[Hit]], limit: int) -> tuple[Found, ...]:
    hits = {hit.passage_id: hit for ranking in rankings for hit in ranking}
    fused = reciprocal_rank_fusion([[hit.passage_id for hit in ranking] for ranking in rankings], limit=limit)
    return tuple(Found(hit=hits[passage_id], score=score) for passage_id, score in fused)
