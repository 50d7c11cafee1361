"""Texts -> unit vectors, with onnxruntime, from what `export_embedder` wrote. Knows no index and no torch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer
from typing_extensions import override

from services.common.platform.errors import ConfigurationError, Unavailable
from services.retriever.core.search import QueryEmbedder
from services.retriever.embedder_files import MODEL_FILE, TOKENIZER_FILE, EmbedderStamp, read_stamp

Vectors = NDArray[np.float32]

# Of a probe's embedding here with torch's: what differs by more is another model, or a broken runtime.
_MIN_COSINE = 0.999
# Enough that batches are of like length, few enough that their tokens take little memory.
_SORTED_TOGETHER = 2_048
_RETRY_S = 10.0

_log = logging.getLogger(__name__)


class Embedder:
    """One loaded model. Thread-safe."""

    def __init__(self, folder: Path, *, num_threads: int, batch_size: int) -> None:
        """Load and check it; takes about a second.

        Args:
            folder: what `export_embedder` made.
            num_threads: that one call uses.
            batch_size: texts that go through the network at once; more are cut.
        Raises:
            ConfigurationError: no embedder is there, it is damaged, or it embeds its probes unlike its stamp says.
        """
        self.stamp: EmbedderStamp = read_stamp(folder)
        self._batch_size = batch_size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        # Spinning threads would take the core from whoever shares it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"])
            self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        except Exception as error:
            # Neither library has an error class of its own.
            raise ConfigurationError(f"embedder {folder} cannot be loaded: {' '.join(str(error).split())}") from error
        self._tokenizer.enable_truncation(self.stamp.max_tokens)
        self._tokenizer.no_padding()
        self._check(folder)

    @property
    def version(self) -> str:
        """Names the model: vectors of different versions must never be compared."""
        return self.stamp.version

    @property
    def num_dims(self) -> int:
        """Number of dimensions of a vector."""
        return self.stamp.num_dims

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return float32 [N, D], unit norm, in the order of the texts. Texts beyond the model's length are cut.

        Texts of like length go through the network together, since a batch is padded to its longest. Blocks: call it off the event loop.
        """
        vectors_ND = np.empty((len(texts), self.num_dims), dtype=np.float32)
        for start in range(0, len(texts), _SORTED_TOGETHER):
            some = texts[start : start + _SORTED_TOGETHER]
            vectors_ND[start : start + len(some)] = self._embed_sorted(some)
        return vectors_ND

    def _embed_sorted(self, texts: Sequence[str]) -> Vectors:
        vectors_ND = np.empty((len(texts), self.num_dims), dtype=np.float32)
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            vectors_ND[rows] = self._run([tokens[row] for row in rows])
        return vectors_ND

    def _run(self, batch: Sequence[Sequence[int]]) -> Vectors:
        longest = max(map(len, batch))
        ids_NT = np.zeros((len(batch), longest), dtype=np.int64)
        mask_NT = np.zeros_like(ids_NT)
        for row, tokens in enumerate(batch):
            ids_NT[row, : len(tokens)] = tokens
            mask_NT[row, : len(tokens)] = 1
        (vectors_ND,) = self._session.run(None, {"input_ids": ids_NT, "attention_mask": mask_NT})
        return np.asarray(vectors_ND, dtype=np.float32)

    def _check(self, folder: Path) -> None:
        # In one batch: padding must not change them.
        vectors_ND = self.embed([probe.text for probe in self.stamp.probes])
        for probe, vector_D in zip(self.stamp.probes, vectors_ND, strict=True):
            cosine = float(vector_D @ np.asarray(probe.embedding, dtype=np.float32))
            if not cosine >= _MIN_COSINE:
                raise ConfigurationError(f"embedder {folder} is broken: its cosine with the original on {probe.text!r} is {cosine:.4f}")


class LateEmbedder(QueryEmbedder[Vectors]):
    """The embedder once it is there: the models may still be made while this service starts. Queries do not wait for documents."""

    def __init__(self, load: Callable[[], Embedder]) -> None:
        """`load` raises ConfigurationError while there is none."""
        self._load = load
        self._loaded: Embedder | None = None
        self._reason = ""
        self._next_try_s = 0.0
        self._queries = ThreadPoolExecutor(1, thread_name_prefix="embed-query")
        self._documents = ThreadPoolExecutor(1, thread_name_prefix="embed-documents")

    @property
    def loaded(self) -> Embedder | None:
        """The embedder, None while there is none."""
        return self._loaded

    async def look(self) -> Embedder | None:
        """Load it if it is not loaded yet and can be; return it. Tries at most every ten seconds."""
        loop = asyncio.get_running_loop()
        if self._loaded is None and loop.time() >= self._next_try_s:
            self._next_try_s = loop.time() + _RETRY_S
            try:
                self._loaded = await loop.run_in_executor(self._documents, self._load)
                _log.info("embedder %s %s with %d dimensions", self._loaded.stamp.name, self._loaded.version, self._loaded.num_dims)
            except ConfigurationError as error:
                if str(error) != self._reason:
                    _log.warning("%s; until then passages are found by their words alone", error)
                self._reason = str(error)
        return self._loaded

    @override
    async def embed_query(self, query: str, *, embedder_version: str) -> Vectors:
        """Return float32 [D].

        Raises:
            Unavailable: there is no embedder yet, or the index was made with another one.
        """
        embedder = self._loaded
        if embedder is None or embedder.version != embedder_version:
            raise Unavailable("the index has no vectors of the embedder that is loaded" if embedder else "there is no embedder yet")
        vectors_1D = await asyncio.get_running_loop().run_in_executor(self._queries, embedder.embed, [query])
        return np.asarray(vectors_1D[0], dtype=np.float32)

    async def embed_documents(self, embedder: Embedder, texts: Sequence[str]) -> Vectors:
        """Return float32 [N, D]."""
        return await asyncio.get_running_loop().run_in_executor(self._documents, embedder.embed, texts)

    def close(self) -> None:
        """End the threads."""
        self._queries.shutdown(wait=True, cancel_futures=True)
        self._documents.shutdown(wait=True, cancel_futures=True)
