"""The section of an exposure block that holds its sequences: once a request the events, and of each item what it is compared with them by.

Layout (little endian): bytes of the section behind this number u32, sequences u8, different keys u16, these keys i64 in the order in
which they come up; then sequence by sequence: events u8, parts of an event u8, parts of an item u8, and for the events and for the items
how many keys they have of each part (a byte that says how: 0 if it is one key each, or else the bytes of a count, 1 or 2, before the
counts) and the keys as places among the different ones, u8 if these are 256 at most, else u16. The same words come up again and again, in
a history and among candidates; a key's place is an eighth of the key. Knows neither the block around it nor what a key means.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.common.platform.errors import CorruptArtifact, InvalidInput
from services.common.ranker.declared.row_keys import RowKeys, SequenceKeys

_SIZE = struct.Struct("<I")
_HEAD = struct.Struct("<BH")
_SEQUENCE = struct.Struct("<BBB")
_MAX_DIFFERENT = _MAX_COUNT = 0xFFFF
_MAX_SMALL = 0x100
MAX_KEYS = 1 << 18
"""Of all sequences of a block."""

Int64Array = npt.NDArray[np.int64]


def encode(sequences: Sequence[SequenceKeys]) -> bytes:
    """Return the section of one request.

    Raises:
        InvalidInput: more than 65,535 different keys, or as many of one part and item, or more than MAX_KEYS keys.
    """
    every = np.concatenate([side.keys_S for one in sequences for side in (one.events, one.candidates)])
    different, first, codes = np.unique(every, return_index=True, return_inverse=True)
    most = max((int(side.counts_NK.max(initial=0)) for one in sequences for side in (one.events, one.candidates)), default=0)
    if len(different) > _MAX_DIFFERENT or most > _MAX_COUNT or len(every) > MAX_KEYS:
        raise InvalidInput(
            f"exposure block: the sequences have {len(every)} keys (at most {MAX_KEYS}), {len(different)} different ones (at most "
            f"{_MAX_DIFFERENT}), {most} of one item (at most {_MAX_COUNT}): ask for fewer candidates, or give items fewer words"
        )
    # In the order in which they come up, so that the bytes do not depend on what the keys are.
    order = np.argsort(first)
    place_of = np.empty(len(different), dtype=np.int64)
    place_of[order] = np.arange(len(different))
    places = place_of[codes].astype("<u1" if len(different) <= _MAX_SMALL else "<u2")
    parts = [_HEAD.pack(len(sequences), len(different)), different[order].astype("<i8", copy=False).tobytes()]
    at = 0
    for one in sequences:
        parts.append(_SEQUENCE.pack(len(one.events), one.events.counts_NK.shape[1], one.candidates.counts_NK.shape[1]))
        for side in (one.events, one.candidates):
            parts += [_encoded_counts(side.counts_NK), places[at : at + len(side.keys_S)].tobytes()]
            at += len(side.keys_S)
    body = b"".join(parts)
    return _SIZE.pack(len(body)) + body


def _encoded_counts(counts_NK: Int64Array) -> bytes:
    if (counts_NK == 1).all():
        return b"\x00"
    width = 1 if counts_NK.max() <= 0xFF else 2
    return bytes([width]) + counts_NK.astype(f"<u{width}").tobytes()


def end_of(blocks: bytes, start: int) -> int:
    """Return where the section that begins at `start` ends.

    Raises:
        CorruptArtifact: before the end of `blocks` it does not.
    """
    if len(blocks) < start + _SIZE.size:
        raise CorruptArtifact(f"exposure block: {len(blocks)} bytes, and its sequences begin at {start}")
    end = start + _SIZE.size + int(_SIZE.unpack_from(blocks, start)[0])
    if end > len(blocks):
        raise CorruptArtifact(f"exposure block: {len(blocks)} bytes, and its sequences end at {end}")
    return end


def decode(blocks: bytes, start: int, num_items: int) -> tuple[SequenceKeys, ...]:
    """Invert `encode` for the section that begins at `start`, of a block of so many items.

    Raises:
        CorruptArtifact: no `encode` wrote it.
    """
    reader = _Reader(blocks, start + _SIZE.size, end_of(blocks, start))
    num_sequences, num_different = reader.numbers(_HEAD)
    different = reader.array("<i8", num_different)
    width, found = (1 if num_different <= _MAX_SMALL else 2), []
    for _ in range(num_sequences):
        num_events, num_parts, num_queries = reader.numbers(_SEQUENCE)
        events = reader.keys(num_events, num_parts, different, width)
        candidates = reader.keys(num_items, num_queries, different, width)
        found.append(SequenceKeys(np.asarray([num_events], dtype=np.int64), events, candidates))
    reader.finish()
    return tuple(found)


@dataclass(slots=True)
class _Reader:
    blocks: bytes
    at: int
    end: int
    num_keys: int = 0

    def numbers(self, packed: struct.Struct) -> tuple[int, ...]:
        self._take(packed.size)
        return packed.unpack_from(self.blocks, self.at - packed.size)

    def array(self, dtype: str, count: int) -> Int64Array:
        size = np.dtype(dtype).itemsize * count
        self._take(size)
        return np.frombuffer(self.blocks, dtype=dtype, count=count, offset=self.at - size).astype(np.int64)

    def keys(self, num_rows: int, num_parts: int, different: Int64Array, width: int) -> RowKeys:
        how = self.array("<u1", 1)[0]
        if how not in (0, 1, 2):
            raise CorruptArtifact(f"exposure block: counts of {how} bytes in its sequences")
        counts = self.array(f"<u{how}", num_rows * num_parts) if how else np.ones(num_rows * num_parts, dtype=np.int64)
        self.num_keys += int(counts.sum())
        if self.num_keys > MAX_KEYS:
            raise CorruptArtifact(f"exposure block: its sequences have more than {MAX_KEYS} keys")
        places = self.array(f"<u{width}", int(counts.sum()))
        if len(places) and places.max() >= len(different):
            raise CorruptArtifact(f"exposure block: key {places.max()} of {len(different)} in its sequences")
        return RowKeys(counts.reshape(num_rows, num_parts), different[places])

    def finish(self) -> None:
        if self.at != self.end:
            raise CorruptArtifact(f"exposure block: {self.end - self.at} bytes too many in its sequences")

    def _take(self, size: int) -> None:
        self.at += size
        if self.at > self.end:
            raise CorruptArtifact(f"exposure block: its sequences need {self.at - self.end} bytes more than they have")
