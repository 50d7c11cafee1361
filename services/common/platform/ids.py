"""Identifiers: canonical ids, request ids, 64-bit table keys, deterministic sample ids. Pure, but for the clock and randomness of uuid7."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from services.common.platform.clock import wall_ms

_CANONICAL_INT = re.compile(r"0|-?[1-9][0-9]{0,18}")
_WHOLE_FLOAT = re.compile(r"(-?)(0|[1-9][0-9]*)\.0+")
_MAY_CHANGE = re.compile(r"\s|\.0")
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1


def canonical_id(text: str) -> str:
    """Return a user's or an item's id as every part of the mesh writes it; whoever lets an id in calls this.

    Blanks around it go (a database pads CHAR columns), and a whole number that was written as a float is that number: "1.0" and "-7.00"
    are "1" and "-7", since pandas makes floats of integers as soon as one is missing. Everything else stays as it is: leading zeros
    ("007"), case, exponents ("1e5"), fractions ("1.5"), Unicode forms. `tunemesh_client.ids.canonical_id` does the same.
    """
    text = text.strip()
    if not text.endswith("0"):
        return text
    whole = _WHOLE_FLOAT.fullmatch(text)
    if whole is None:
        return text
    sign, digits = whole.groups()
    return digits if digits == "0" else sign + digits


def canonical_ids(texts: Sequence[str]) -> tuple[str, ...]:
    """Return `canonical_id` of each; a list in which nothing changes, as nearly all are, costs one look at all of it."""
    if _MAY_CHANGE.search("\x00".join(texts)) is None:
        return tuple(texts)
    return tuple(map(canonical_id, texts))


def entity_key(entity_id: str) -> int:
    """Return the int64 table key of a user or item id.

    A canonical decimal int64 ("42", "-7") is its own key; any other text is hashed (BLAKE2b, 64 bits).
    Hence numeric catalogues are collision-free, and two textual ids collide with probability 2**-64 a pair.
    """
    if _CANONICAL_INT.fullmatch(entity_id):
        number = int(entity_id)
        if _INT64_MIN <= number <= _INT64_MAX:
            return number
    digest = hashlib.blake2b(entity_id.encode(), digest_size=8, person=b"tm.entity").digest()
    return int.from_bytes(digest, "little", signed=True)


def sample_id(request_id: str, item_id: str, revision: int) -> int:
    """Return the uint64 id of a sample; the same arguments give the same id in every process."""
    text = f"{request_id}\x00{item_id}\x00{revision}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"tm.sample").digest(), "little")


def sample_ids(request_id: str, item_ids: Sequence[str], revision: int) -> npt.NDArray[np.uint64]:
    """Return `sample_id` of each item, uint64 [N]: the request's part is hashed once, which takes a third of the time."""
    begun = hashlib.blake2b(f"{request_id}\x00".encode(), digest_size=8, person=b"tm.sample")
    end = f"\x00{revision}".encode()
    digests = []
    for item_id in item_ids:
        digest = begun.copy()
        digest.update(item_id.encode() + end)
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64, copy=False)


def uuid7(unix_ms: int | None = None) -> str:
    """Return a UUIDv7 (RFC 9562, section 5.7) for `unix_ms`, or for now."""
    millis = wall_ms() if unix_ms is None else unix_ms
    random_bits = int.from_bytes(os.urandom(10), "big")
    value = (millis & ((1 << 48) - 1)) << 80 | random_bits
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return str(uuid.UUID(int=value))
