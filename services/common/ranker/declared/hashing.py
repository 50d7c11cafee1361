"""Keys of rows (of a word, of an unknown one, of none at all) and buckets of words. Pure; the same in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt

Meaning = Literal["word", "bucket", "unknown", "absent"]


def row_key(table: str, meaning: Meaning, word: str = "") -> int:
    """Return the uint64 key of a row: equal words of one table share a row, and no word is the unknown or the absent one."""
    text = f"{table}\x00{meaning}\x00{word}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"tm.declared").digest(), "little")


def row_keys(table: str, meaning: Meaning, words: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Return `row_key` of each."""
    return np.asarray([row_key(table, meaning, word) for word in words], dtype=np.uint64)


def bucket_of(word: str, buckets: int) -> int:
    """Return the bucket of a word, 0 to buckets - 1; the same in every feature."""
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8, person=b"tm.bucket").digest()
    return int.from_bytes(digest, "little") % buckets
