"""A folder of office files, through the reading process, the indexer and LanceDB: planted facts are found, and what is refused says why."""

from __future__ import annotations

from pathlib import Path

import pytest
from fpdf import FPDF
from PIL import Image

from services.retriever.catalog import CatalogDocuments
from services.retriever.core.documents import FILES, ChunkLimits
from services.retriever.embedder import Embedder, LateEmbedder
from services.retriever.extraction import ExtractionLimits
from services.retriever.extraction_process import ExtractionProcess
from services.retriever.files import DocumentFolder, FileLimits
from services.retriever.indexer import Indexer
from services.retriever.lance_index import LanceIndex
from services.retriever.left_out import FILE_NAME, LeftOut
from tests.office_files import forty

pytestmark = pytest.mark.integration

CHUNKS = ChunkLimits(max_tokens=200, overlap_tokens=40)
LIMITS = ExtractionLimits(
    cpu_ms=600_000,
    cpu_setting="CPU_SETTING",
    memory_bytes=512 * 2**20,
    memory_setting="MEMORY_SETTING",
    unpacked_bytes=2**27,
    unpacked_setting="UNPACKED_SETTING",
)


class NoEmbedder(LateEmbedder):
    """Search by words alone, as before the embedder's files are there."""

    async def look(self) -> Embedder | None:
        return None


def scan() -> bytes:
    pdf = FPDF()
    pdf.add_page()
    pdf.image(Image.new("L", (200, 100), 200), w=100)
    return bytes(pdf.output())


async def test_planted_facts_of_office_files_are_found_and_files_without_text_say_why(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    files = [file for file in forty() if "_0." in file.name or "_1." in file.name]
    for file in files:
        (docs / file.name).write_bytes(file.raw)
    (docs / "scan.pdf").write_bytes(scan())
    (docs / "wrong.xlsx").write_bytes(files[0].raw)
    extraction = ExtractionProcess(LIMITS, CHUNKS)
    limits, left_out = FileLimits(max_files=99, max_bytes=2**22), LeftOut(tmp_path / FILE_NAME)
    folder = DocumentFolder(docs, limits, CHUNKS, max_batch=3, read=extraction.read, left_out=left_out)
    index = LanceIndex(tmp_path / "index")
    indexer = Indexer(
        index,
        NoEmbedder(lambda: pytest.fail("no embedder is loaded")),
        CHUNKS,
        folder=folder,
        catalog=CatalogDocuments(CHUNKS, lambda: None),
        poll_s=1.0,
        on_indexed=lambda _: None,
    )
    try:
        index.take()
        await index.open(None)
        await indexer.round()
        assert index.snapshot is not None
        assert folder.refused.keys() == {"scan.pdf", "wrong.xlsx"}
        assert "(a scan)" in folder.refused["scan.pdf"] and "rename it to .pdf" in folder.refused["wrong.xlsx"]
        assert set((await index.hashes())[FILES]) == {file.name for file in files}
        asked = [fact for file in files for fact in file.facts[::7]]
        missed = []
        for fact in asked:
            hits = await index.snapshot.by_words(" ".join(fact.text), source=FILES, limit=5)
            if not any(all(text in hit.text for text in fact.text) and all(title in hit.title for title in fact.title) for hit in hits):
                missed.append(fact)
        assert len(asked) > 15 and len(missed) <= 0.05 * len(asked), missed
    finally:
        extraction.close()
        index.close()
