"""The retriever's only wiring: from the settings to what reaches the world, the core and the servicer."""

from __future__ import annotations

import asyncio
import logging

from opentelemetry.metrics import Meter
from tunemesh.retriever.v1 import retriever_service_pb2, retriever_service_pb2_grpc

from services.common.events.topics import CATALOG
from services.common.platform.errors import ConfigurationError
from services.common.platform.grpc_server import GrpcServer, Servicer, serve
from services.common.platform.settings import redacted, variable_of
from services.common.platform.telemetry import configure
from services.common.platform.topic_follower import TopicFollower
from services.retriever.catalog import CatalogDocuments
from services.retriever.core.documents import ChunkLimits
from services.retriever.core.search import Searcher
from services.retriever.embedder import Embedder, LateEmbedder
from services.retriever.extraction import ExtractionLimits
from services.retriever.extraction_process import ExtractionProcess
from services.retriever.files import DocumentFolder, FileLimits
from services.retriever.indexer import MAX_DOCUMENTS_A_COMMIT, Indexed, Indexer
from services.retriever.lance_index import LanceIndex
from services.retriever.left_out import FILE_NAME, LeftOut
from services.retriever.servicer import RetrieverServicer
from services.retriever.settings import RetrieverSettings

SERVICE = "retriever"
_CATALOG_CHECK_S = 0.05

_log = logging.getLogger(__name__)


class Retriever:
    """The parts of one retriever, wired. Make it on the event loop that will run it."""

    def __init__(self, settings: RetrieverSettings, meter: Meter) -> None:
        """Nothing is read before `run`.

        Raises:
            ConfigurationError: passages would overlap by more than they are long.
        """
        if settings.chunk_overlap_tokens >= settings.chunk_tokens:
            names = variable_of(settings, "chunk_overlap_tokens"), variable_of(settings, "chunk_tokens")
            raise ConfigurationError(f"{names[0]}={settings.chunk_overlap_tokens}: it must be less than {names[1]}={settings.chunk_tokens}")
        chunks = ChunkLimits(max_tokens=settings.chunk_tokens, overlap_tokens=settings.chunk_overlap_tokens)
        loop = asyncio.get_running_loop()
        self.embedder = LateEmbedder(
            lambda: Embedder(
                settings.models_dir / settings.embedder, num_threads=settings.embedder_threads, batch_size=settings.embedder_batch
            )
        )
        self.index = LanceIndex(settings.index_dir)
        self.extraction = _extraction_of(settings, chunks)
        self.folder = _folder_of(settings, chunks, self.extraction)
        self._documents = meter.create_counter("retriever.documents", description="Documents by what was done to them in the index.")
        self.catalog = CatalogDocuments(chunks, lambda: _wake(loop, self.indexer))
        self.indexer = Indexer(
            self.index,
            self.embedder,
            chunks,
            folder=self.folder,
            catalog=self.catalog,
            poll_s=settings.poll_ms / 1e3,
            on_indexed=self._count,
        )
        self.follower = TopicFollower(settings.kafka_bootstrap_servers, CATALOG.name, self.catalog, client_id=SERVICE)
        self._catalog_wait_s = settings.catalog_wait_ms / 1e3
        searcher = Searcher(lambda: self.index.snapshot, self.embedder, lambda: self.indexer.catalog_offset is not None)
        self.servicer = Servicer(
            descriptor=retriever_service_pb2.DESCRIPTOR.services_by_name["RetrieverService"],
            implementation=RetrieverServicer(
                searcher,
                meter,
                snapshot=lambda: self.index.snapshot,
                catalog_offset=lambda: self.indexer.catalog_offset,
                refused=lambda: self.folder.refused if self.folder is not None else {},
                incomplete=lambda: self.folder.incomplete if self.folder is not None else {},
                max_concurrent=settings.max_concurrent_searches,
            ),
            register=retriever_service_pb2_grpc.add_RetrieverServiceServicer_to_server,
        )

    async def run(self, server: GrpcServer) -> None:
        """Index until cancelled; health says SERVING once the files are indexed, and the catalogue too if it can be read in time.

        Raises:
            ConfigurationError: the index folder cannot be used.
        """
        self.index.take()
        self.follower.start()
        indexing = asyncio.create_task(self.indexer.run())
        serving = asyncio.create_task(self._serve_when_indexed(server))
        try:
            await asyncio.gather(indexing, serving)
        finally:
            indexing.cancel()
            serving.cancel()

    async def close(self) -> None:
        """End the threads and let the index go."""
        await asyncio.to_thread(self.extraction.close)
        await asyncio.to_thread(self.follower.stop)
        await asyncio.to_thread(self.embedder.close)
        self.index.close()

    async def _serve_when_indexed(self, server: GrpcServer) -> None:
        await self.indexer.first_look_done.wait()
        try:
            await asyncio.wait_for(self._catalog_indexed(), self._catalog_wait_s)
        except TimeoutError:
            _log.warning("the catalogue was not read in %.0f s: answers say catalog_unavailable until it is", self._catalog_wait_s)
        await server.set_serving(True)

    async def _catalog_indexed(self) -> None:
        while self.indexer.catalog_offset is None:
            await asyncio.sleep(_CATALOG_CHECK_S)

    def _count(self, done: Indexed) -> None:
        self._documents.add(done.num_documents, {"outcome": "indexed"})
        self._documents.add(done.num_deleted, {"outcome": "deleted"})


def _wake(loop: asyncio.AbstractEventLoop, indexer: Indexer) -> None:
    loop.call_soon_threadsafe(indexer.wake)


def _extraction_of(settings: RetrieverSettings, chunks: ChunkLimits) -> ExtractionProcess:
    limits = ExtractionLimits(
        cpu_ms=settings.extraction_cpu_ms,
        cpu_setting=variable_of(settings, "extraction_cpu_ms"),
        memory_bytes=settings.extraction_memory_bytes,
        memory_setting=variable_of(settings, "extraction_memory_bytes"),
        unpacked_bytes=settings.extraction_unpacked_bytes,
        unpacked_setting=variable_of(settings, "extraction_unpacked_bytes"),
    )
    return ExtractionProcess(limits, chunks)


def _folder_of(settings: RetrieverSettings, chunks: ChunkLimits, extraction: ExtractionProcess) -> DocumentFolder | None:
    if settings.documents_dir is None:
        return None
    limits = FileLimits(max_files=settings.max_files, max_bytes=settings.max_file_bytes)
    left_out = LeftOut(settings.index_dir / FILE_NAME)
    return DocumentFolder(settings.documents_dir, limits, chunks, max_batch=MAX_DOCUMENTS_A_COMMIT, read=extraction.read, left_out=left_out)


async def run(settings: RetrieverSettings) -> None:
    """Serve until SIGTERM.

    Raises:
        ConfigurationError: a setting, a folder or the port is wrong.
    """
    signals = configure(SERVICE, settings)
    _log.info("settings: %s", redacted(settings))
    retriever = Retriever(settings, signals.meter)
    await serve([retriever.servicer], settings, signals, on_drain=retriever.close, main=retriever.run, serving=False)
