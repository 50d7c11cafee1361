"""The exposure block: the features of one request as bytes, logged with the exposure and scored from nothing else.

Layout (little endian): version u8, schema hash 8 bytes, items u16, history u8, user features u8, item features u8, user key i64,
history keys i64 each, then float16: history values, user features, item rows. Item ids stand beside the block, in the same order.
Under a spec whose declared features make rows of tables the version is 2 and a section follows: keyed features of the user's side u8 and of
the item's u8, keys u32, how many keys the user has of each feature u16, and each item, then the keys i64 in the same order. Under a spec
with sequences the version is 3, and behind that section follows the one of `sequence_section.py`. Other specs have blocks of version 1, as
ever. Knows nothing about what a feature means.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.common.platform.errors import CorruptArtifact, InvalidInput
from services.common.ranker import sequence_section
from services.common.ranker.declared.row_keys import KeyedRows, RowKeys, SequenceKeys
from services.common.ranker.feature_spec import MAX_COLUMNS, FeatureSpec
from services.common.ranker.features import Features

VERSION = 1
VERSION_WITH_KEYS = 2
VERSION_WITH_SEQUENCES = 3
_HEAD = struct.Struct("<B8sHBBBq")
_KEYS_HEAD = struct.Struct("<BBI")
_MAX_ITEMS = _MAX_COUNT = 0xFFFF
MAX_KEYED_FEATURES = 255
"""Of a side."""
MAX_KEYS = 1 << 18
"""Of all features and items of a block: 2 MiB."""


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

    @property
    def columns_end(self) -> int:
        """Where a block of version 1 ends."""
        return self.items_start + self.num_items * self.row_bytes


class _KeysHead(NamedTuple):
    num_user_features: int
    num_item_features: int
    num_keys: int

    def counts(self, num_items: int) -> int:
        return self.num_user_features + num_items * self.num_item_features

    def bytes(self, num_items: int) -> int:
        return _KEYS_HEAD.size + 2 * self.counts(num_items) + 8 * self.num_keys


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
    if head.version not in (VERSION, VERSION_WITH_KEYS, VERSION_WITH_SEQUENCES):
        raise CorruptArtifact(f"exposure block: version {head.version}, this code reads {VERSION} to {VERSION_WITH_SEQUENCES}")
    end = start + head.columns_end
    if head.version > VERSION:
        if len(blocks) < end + _KEYS_HEAD.size:
            raise CorruptArtifact(f"exposure block: {len(blocks) - start} bytes, and its keys begin at {end - start}")
        end += _keys_head(blocks, start, head).bytes(head.num_items)
    if end > len(blocks):
        raise CorruptArtifact(f"exposure block: {len(blocks) - start} bytes, its head says {end - start}")
    if head.version > VERSION:
        _check_counts(blocks, start, head)
    if head.version == VERSION_WITH_SEQUENCES:
        end = sequence_section.end_of(blocks, end)
    return head, end


def encode(features: Features, schema_hash: str) -> bytes:
    """Return the block of `features`; `schema_hash` is the spec's.

    Raises:
        InvalidInput: more items than 65,535, more history, user or item columns than 255, what no head can say, or more keys than MAX_KEYS.
    """
    num_history, num_user, num_item = len(features.history_keys_L), len(features.user_U), features.items_NF.shape[1]
    if len(features) > _MAX_ITEMS or max(num_history, num_user, num_item) > MAX_COLUMNS:
        raise InvalidInput(
            f"exposure block: {len(features)} items (at most {_MAX_ITEMS}), {num_history} of history, {num_user} user and {num_item} item "
            f"columns (at most {MAX_COLUMNS} each)"
        )
    version = VERSION if features.keys is None else VERSION_WITH_SEQUENCES if features.keys.sequences else VERSION_WITH_KEYS
    head = _HEAD.pack(version, bytes.fromhex(schema_hash), len(features), num_history, num_user, num_item, features.user_key)
    return b"".join(
        [
            head,
            features.history_keys_L.astype("<i8", copy=False).tobytes(),
            features.history_values_L.astype("<f2", copy=False).tobytes(),
            features.user_U.astype("<f2", copy=False).tobytes(),
            features.items_NF.astype("<f2", copy=False).tobytes(),
            b"" if features.keys is None else _encoded_keys(features.keys),
            b"" if version < VERSION_WITH_SEQUENCES or features.keys is None else sequence_section.encode(features.keys.sequences),
        ]
    )


def _encoded_keys(keys: KeyedRows) -> bytes:
    num_user, num_item = keys.user.counts_NK.shape[1], keys.items.counts_NK.shape[1]
    num_keys = len(keys.user.keys_S) + len(keys.items.keys_S)
    most = max(int(side.counts_NK.max(initial=0)) for side in (keys.user, keys.items))
    if num_keys > MAX_KEYS or most > _MAX_COUNT or max(num_user, num_item) > MAX_KEYED_FEATURES:
        raise InvalidInput(
            f"exposure block: {num_keys} keys (at most {MAX_KEYS}), {most} of one feature (at most {_MAX_COUNT}), {num_user} user and "
            f"{num_item} item features with embedding_dim (at most {MAX_KEYED_FEATURES} each): ask for fewer candidates, or give the "
            "features fewer words (max_length of a tokenize_feature)"
        )
    parts = [_KEYS_HEAD.pack(num_user, num_item, num_keys)]
    parts += [side.counts_NK.astype("<u2").tobytes() for side in (keys.user, keys.items)]
    return b"".join([*parts, *(side.keys_S.astype("<i8", copy=False).tobytes() for side in (keys.user, keys.items))])


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
        keys=_decoded_keys(blocks, start, head, spec),
    )


def _decoded_keys(blocks: bytes, start: int, head: _Head, spec: FeatureSpec) -> KeyedRows | None:
    plan = spec.plan
    wanted = len(plan.user_keyed), len(plan.item_keyed)
    needed = VERSION_WITH_SEQUENCES if plan.sequences else VERSION_WITH_KEYS if any(wanted) else VERSION
    if head.version == needed == VERSION:
        return None
    there = tuple(_keys_head(blocks, start, head)[:2]) if head.version > VERSION else (0, 0)
    if there != wanted:
        raise CorruptArtifact(f"exposure block: keys of {there} features of user and item, the feature spec has {wanted}")
    if head.version != needed:
        raise CorruptArtifact(f"exposure block: version {head.version}, under this feature spec it is {needed}")
    counts, keys_S = _keys_of(blocks, start, head)
    counts_1K, counts_NK = counts[: wanted[0]].reshape(1, wanted[0]), counts[wanted[0] :].reshape(head.num_items, wanted[1])
    num_user = int(counts_1K.sum())
    return KeyedRows(RowKeys(counts_1K, keys_S[:num_user]), RowKeys(counts_NK, keys_S[num_user:]), _sequences(blocks, start, head, spec))


def _sequences(blocks: bytes, start: int, head: _Head, spec: FeatureSpec) -> tuple[SequenceKeys, ...]:
    if head.version < VERSION_WITH_SEQUENCES:
        return ()
    at = start + head.columns_end + _keys_head(blocks, start, head).bytes(head.num_items)
    found = sequence_section.decode(blocks, at, head.num_items)
    there = [(one.events.counts_NK.shape[1], one.candidates.counts_NK.shape[1]) for one in found]
    wanted = [(len(one.parts), len(one.queries)) for one in spec.plan.sequences]
    if there != wanted or any(int(one.lengths_G[0]) > known.length for one, known in zip(found, spec.plan.sequences, strict=True)):
        raise CorruptArtifact(f"exposure block: sequences of {there} parts of events and candidates, the feature spec has {wanted}")
    return found


def _keys_head(blocks: bytes, start: int, head: _Head) -> _KeysHead:
    return _KeysHead(*_KEYS_HEAD.unpack_from(blocks, start + head.columns_end))


def _check_counts(blocks: bytes, start: int, head: _Head) -> None:
    """Refuse what no `encode` wrote: whoever read the head may then select and decode."""
    (counts, _), num_keys = _keys_of(blocks, start, head), _keys_head(blocks, start, head).num_keys
    if counts.sum() != num_keys or num_keys > MAX_KEYS:
        raise CorruptArtifact(f"exposure block: {num_keys} keys (at most {MAX_KEYS}), its counts say {counts.sum()}")


def _keys_of(blocks: bytes, start: int, head: _Head) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the counts, of the user and then of the items, and the keys."""
    keys, at = _keys_head(blocks, start, head), start + head.columns_end + _KEYS_HEAD.size
    counts = np.frombuffer(blocks, dtype="<u2", count=keys.counts(head.num_items), offset=at).astype(np.int64)
    return counts, np.frombuffer(blocks, dtype="<i8", count=keys.num_keys, offset=at + 2 * len(counts))


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
    if head.version > VERSION:
        parts.append(_selected_keys(block, head, rows))
    if head.version == VERSION_WITH_SEQUENCES:
        at = head.columns_end + _keys_head(block, 0, head).bytes(head.num_items)
        wanted = np.asarray(rows, dtype=np.int64)
        of_rows = [replace(one, candidates=one.candidates.take(wanted)) for one in sequence_section.decode(block, at, head.num_items)]
        parts.append(sequence_section.encode(of_rows))
    return b"".join(parts)


def _selected_keys(block: bytes, head: _Head, rows: Sequence[int]) -> bytes:
    """Return the section of keys with only the given item rows."""
    counts, keys_S = _keys_of(block, 0, head)
    num_user, num_item, _ = _keys_head(block, 0, head)
    of_user, of_items = counts[:num_user].reshape(1, num_user), counts[num_user:].reshape(head.num_items, num_item)
    own = int(of_user.sum())
    items = RowKeys(of_items, keys_S[own:]).take(np.asarray(rows, dtype=np.int64))
    return _encoded_keys(KeyedRows(RowKeys(of_user, keys_S[:own]), items))
