"""The records of a delta: its body cut into chunks that fit a broker's limit, and put together again in the order of the log. Pure.

Knows nothing of what a body holds, of Kafka, epochs or sequence numbers: a follower judges what is complete.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import crc32c
from google.protobuf.message import DecodeError
from tunemesh.events.v1 import delta_pb2

from services.common.events.limits import MAX_RECORD_BYTES
from services.common.platform.errors import CorruptArtifact
from services.common.ranker.delta import DeltaBody, decode_body

# A superseded trainer may write on beside its successor: so many epochs may have a delta of which chunks are missing.
_MAX_OPEN = 2


def chunk(header: delta_pb2.DeltaHeader, body: bytes, max_bytes: int = MAX_RECORD_BYTES) -> list[delta_pb2.Delta]:
    """Return the records of one delta, in order; sets the body's CRC in (a copy of) the header. An empty body makes one record."""
    complete = delta_pb2.DeltaHeader()
    complete.CopyFrom(header)
    complete.body_crc32c = crc32c.crc32c(body)
    pieces = [body[start : start + max_bytes] for start in range(0, len(body), max_bytes)] or [b""]
    return [delta_pb2.Delta(header=complete, chunk_index=index, chunk_count=len(pieces), body=piece) for index, piece in enumerate(pieces)]


def parse_chunk(value: bytes | None) -> delta_pb2.Delta:
    """Return the record that a value of ranker.deltas.v1 holds.

    Raises:
        CorruptArtifact: the value is absent, or no such record.
    """
    try:
        record = delta_pb2.Delta.FromString(value or b"")
    except DecodeError as error:
        raise CorruptArtifact(f"no delta in Protobuf: {error}") from error
    if not record.HasField("header"):
        raise CorruptArtifact("a delta without a header")
    return record


@dataclass(frozen=True, slots=True)
class CompleteDelta:
    """A delta whose chunks have all arrived and whose CRC is right; `body` is still encoded (b"" when there is none)."""

    header: delta_pb2.DeltaHeader
    body: bytes

    def decode(self) -> DeltaBody:
        """Return the decoded body. Raises CorruptArtifact."""
        return decode_body(self.body, self.header.dtype) if self.body else DeltaBody()


@dataclass(slots=True)
class _Open:
    """A delta of which chunks are missing."""

    header: delta_pb2.DeltaHeader
    pieces: list[bytes] = field(default_factory=list)


class Reassembler:
    """Puts the chunks of one shard's partition together, in the order of the log.

    A writer that died between two chunks leaves a head without its tail; the head is dropped when its epoch's next delta begins, and the
    gap in seq tells the follower. A chunk repeated by a producer's retry is ignored. Each epoch is put together by itself: a superseded
    trainer that writes on between the chunks of its successor breaks none of them.
    """

    def __init__(self) -> None:
        """Start between two deltas."""
        self._open: dict[int, _Open] = {}

    @property
    def is_empty(self) -> bool:
        """True between two deltas: reading may start again here."""
        return not self._open

    def add(self, record: delta_pb2.Delta) -> CompleteDelta | None:
        """Take the next record; return the delta that it completes, if it does.

        Raises:
            CorruptArtifact: a chunk is missing or the CRC is wrong. What was collected of this delta is dropped.
        """
        header = record.header
        who = f"delta {header.epoch}.{header.seq}"
        if not 0 <= record.chunk_index < record.chunk_count:
            self._open.pop(header.epoch, None)
            raise CorruptArtifact(f"{who}: chunk {record.chunk_index} of {record.chunk_count}")
        open_ = self._open.get(header.epoch)
        if open_ is None or open_.header != header:
            open_ = self._begin(header)
        num_pieces = len(open_.pieces)
        if record.chunk_index < num_pieces:
            return None
        if record.chunk_index > num_pieces:
            del self._open[header.epoch]
            raise CorruptArtifact(f"{who}: chunk {record.chunk_index} came after {num_pieces} chunks")
        open_.pieces.append(record.body)
        if num_pieces + 1 < record.chunk_count:
            return None
        del self._open[header.epoch]
        body = b"".join(open_.pieces)
        if crc32c.crc32c(body) != header.body_crc32c:
            raise CorruptArtifact(f"{who}: the body's CRC32C is not that of the header")
        return CompleteDelta(header, body)

    def _begin(self, header: delta_pb2.DeltaHeader) -> _Open:
        self._open[header.epoch] = begun = _Open(header)
        for epoch in sorted(self._open.keys() - {header.epoch})[: max(len(self._open) - _MAX_OPEN, 0)]:
            del self._open[epoch]
        return begun
