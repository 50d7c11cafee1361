"""RetrieverService: proto -> domain, one call of the core, domain -> proto."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc.aio
from opentelemetry.metrics import Meter
from tunemesh.common.v1 import passage_pb2
from tunemesh.retriever.v1 import retriever_service_pb2 as pb
from tunemesh.retriever.v1 import retriever_service_pb2_grpc

from services.common.platform.errors import Overloaded
from services.retriever.core.search import NoIndex, Searcher
from services.retriever.embedder import Vectors
from services.retriever.files import MAX_FILES_SHOWN
from services.retriever.lance_index import Snapshot

Context = grpc.aio.ServicerContext[Any, Any]


class RetrieverServicer(retriever_service_pb2_grpc.RetrieverServiceServicer):
    """Serves one Searcher."""

    def __init__(
        self,
        searcher: Searcher[Vectors],
        meter: Meter,
        *,
        snapshot: Callable[[], Snapshot | None],
        catalog_offset: Callable[[], int | None],
        refused: Callable[[], dict[str, str]],
        incomplete: Callable[[], dict[str, str]],
        max_concurrent: int,
    ) -> None:
        """`meter` gets the counter `retriever.searches` by degraded reason; the callables say what GetIndexStatus answers."""
        self._searcher, self._snapshot, self._catalog_offset = searcher, snapshot, catalog_offset
        self._refused, self._incomplete = refused, incomplete
        self._max_concurrent, self._num_running = max_concurrent, 0
        self._searches = meter.create_counter("retriever.searches", description="Searches by what they could not look at.")

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:  # noqa: ARG002 - gRPC's signature
        """Errors: see the proto and core.search; RESOURCE_EXHAUSTED when too many run."""
        if self._num_running >= self._max_concurrent:
            raise Overloaded(f"{self._num_running} searches run already; retry later")
        self._num_running += 1
        try:
            answer = await self._searcher.search(request.query, limit=request.limit, source=request.source)
        finally:
            self._num_running -= 1
        self._searches.add(1, {"degraded_reason": answer.degraded_reason})
        passages = [
            passage_pb2.Passage(passage_id=found.hit.passage_id, title=found.hit.title, text=found.hit.text, score=found.score)
            for found in answer.found
        ]
        return pb.SearchResponse(passages=passages, index_version=answer.index_version, degraded_reason=answer.degraded_reason)

    async def GetIndexStatus(self, request: pb.GetIndexStatusRequest, context: Context) -> pb.GetIndexStatusResponse:  # noqa: ARG002 - gRPC's signature
        """Errors: UNAVAILABLE until an index is there."""
        snapshot = self._snapshot()
        if snapshot is None:
            raise NoIndex("nothing has been indexed yet; retry later")
        return pb.GetIndexStatusResponse(
            index_version=snapshot.version,
            num_passages=snapshot.num_passages,
            passages_by_source=snapshot.num_by_source,
            catalog_offset=self._catalog_offset() or 0,
            refused_files=_first(self._refused()),
            incomplete_files=_first(self._incomplete()),
        )


def _first(by_file: dict[str, str]) -> dict[str, str]:
    return dict(sorted(by_file.items())[:MAX_FILES_SHOWN])
