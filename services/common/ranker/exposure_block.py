"""The exposure block: the features of one request as bytes, logged with the exposure and scored from nothing else.

Layout (little endian): version u8, schema hash 8 bytes, items u16, history u8, user features u8, item features u8, user key i64,
history keys i64 each, then float16: history values, user features, item rows. Item ids stand beside the block, in the same order.
Knows nothing about what a feature means.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from services.common.platform.errors import CorruptArtifact, InvalidInput
from services.common.ranker.feature_spec import MAX_COLUMNS, FeatureSpec
from services.common.ranker.features import Features

VERSION = 1
_HEAD = struct.Struct("<B8sHBBBq")
_MAX_ITEMS = 0xFFFF


class _Head(NamedTuple):
    version: int
    schema: bytes
    num_items: int
    num_history: int
    num_user_features: int
    num_item_features: int
    user_key: int

    @property
    def items_start(self) -> int:
        return _HEAD.size + 10 * self.num_history + 2 * self.num_user_features

    @property
    def row_bytes(self) -> int:
        return 2 * self.num_item_features


def _read_head(block: bytes) -> _Head:
    head, end = _head_at(block, 0)
    if len(block) != end:
        raise CorruptArtifact(f"exposure block: {len(block)} bytes, its head says {end}")
    return head


def _head_at(blocks: bytes, start: int) -> tuple[_Head, int]:
    """Return the head of the block that begins at `start`, and where the block ends."""
    if len(blocks) - start < _HEAD.size:
        raise CorruptArtifact(f"exposure block: {len(blocks) - start} bytes are too few")
    head = _Head(*_HEAD.unpack_from(blocks, start))
    if head.version != VERSION:
        raise CorruptArtifact(f"exposure block: version {head.version}, this code reads {VERSION}")
    end = start + head.items_start + head.num_items * head.row_bytes
    if end > len(blocks):
        raise CorruptArtifact(f"exposure block: {len(blocks) - start} bytes, its head says {end - start}")
    return head, end


def encode(features: Features, schema_hash: str) -> bytes:
    """Return the block of `features`; `schema_hash` is the spec's.

    Raises:
        InvalidInput: more items than 65,535, or more history, user or item columns than 255: what no head can say.
    """
    num_history, num_user, num_item = len(features.history_keys_L), len(features.user_U), features.items_NF.shape[1]
    if len(features) > _MAX_ITEMS or max(num_history, num_user, num_item) > MAX_COLUMNS:
        raise InvalidInput(
            f"exposure block: {len(features)} items (at most {_MAX_ITEMS}), {num_history} of history, {num_user} user and {num_item} item "
            f"columns (at most {MAX_COLUMNS} each)"
        )
    head = _HEAD.pack(VERSION, bytes.fromhex(schema_hash), len(features), num_history, num_user, num_item, features.user_key)
    return b"".join(
        [
            head,
            features.history_keys_L.astype("<i8", copy=False).tobytes(),
            features.history_values_L.astype("<f2", copy=False).tobytes(),
            features.user_U.astype("<f2", copy=False).tobytes(),
            features.items_NF.astype("<f2", copy=False).tobytes(),
        ]
    )


def decode(block: bytes, spec: FeatureSpec) -> Features:
    """Invert `encode`; the arrays are read-only views into `block`.

    Raises:
        CorruptArtifact: damaged, or made under another feature spec.
    """
    return _decoded(block, 0, _read_head(block), spec)


def decode_all(blocks: bytes, spec: FeatureSpec) -> list[Features]:
    """Return what blocks that stand one behind the other hold; the arrays are read-only views into `blocks`.

    Raises:
        CorruptArtifact: one is damaged, or made under another feature spec.
    """
    found: list[Features] = []
    start = 0
    while start < len(blocks):
        head, end = _head_at(blocks, start)
        found.append(_decoded(blocks, start, head, spec))
        start = end
    return found


def _decoded(blocks: bytes, start: int, head: _Head, spec: FeatureSpec) -> Features:
    if head.schema.hex() != spec.schema_hash:
        raise CorruptArtifact(f"exposure block: feature spec {head.schema.hex()}, this process has {spec.schema_hash}")
    if (head.num_user_features, head.num_item_features) != (len(spec.user_columns), len(spec.item_columns)):
        raise CorruptArtifact("exposure block: feature counts differ from the feature spec's")
    keys_start = start + _HEAD.size
    user_start, items_start = head.num_history, head.num_history + head.num_user_features
    num_halves = items_start + head.num_items * head.num_item_features
    halves = np.frombuffer(blocks, dtype="<f2", count=num_halves, offset=keys_start + 8 * head.num_history)
    return Features(
        user_key=head.user_key,
        history_keys_L=np.frombuffer(blocks, dtype="<i8", count=head.num_history, offset=keys_start),
        history_values_L=halves[:user_start],
        user_U=halves[user_start:items_start],
        items_NF=halves[items_start:].reshape(head.num_items, head.num_item_features),
    )


def num_items(block: bytes) -> int:
    """Return how many item rows a block holds.

    Raises:
        CorruptArtifact: not a block of this version.
    """
    return _read_head(block).num_items


def schema_hash(block: bytes) -> str:
    """Return the schema hash under which a block was made.

    Raises:
        CorruptArtifact: not a block of this version.
    """
    return _read_head(block).schema.hex()


def select(block: bytes, rows: Sequence[int]) -> bytes:
    """Return a block with only the given item rows, in that order; the user part is kept.

    Raises:
        CorruptArtifact: not a block of this version.
        IndexError: a row is out of range.
    """
    head = _read_head(block)
    if any(not 0 <= row < head.num_items for row in rows):
        raise IndexError(f"rows {list(rows)} of a block with {head.num_items} items")
    fields = head._replace(num_items=len(rows))
    starts = [head.items_start + row * head.row_bytes for row in rows]
    parts = [_HEAD.pack(*fields), block[_HEAD.size : head.items_start]]
    parts += [block[start : start + head.row_bytes] for start in starts]
    return b"".join(parts)
