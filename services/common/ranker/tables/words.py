"""Files of int64 words, mapped into memory."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np

from services.common.platform.errors import CorruptArtifact
from services.common.ranker.tables.index import Int64s

_WORD_BYTES = 8


def map_words(path: Path, *, writable: bool) -> Int64s:
    """Return the file at `path` as int64 words, shared with all processes that map it.

    Raises:
        FileNotFoundError: it is not there.
        CorruptArtifact: it is empty, or does not end at a word.
    """
    with path.open("r+b" if writable else "rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes == 0 or num_bytes % _WORD_BYTES:
            raise CorruptArtifact(f"{path} has {num_bytes} bytes: truncated")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
    return np.frombuffer(mapped, np.int64)


def create_words(path: Path, num_words: int) -> Int64s:
    """Make a file of zeros and return it mapped for writing.

    Its blocks are reserved now: running out of disk is an error here, and not a SIGBUS in the middle of a row.

    Raises:
        OSError: e.g. no space left.
    """
    with path.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, num_words * _WORD_BYTES)
    return map_words(path, writable=True)
