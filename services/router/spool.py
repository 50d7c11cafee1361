"""A folder of records that wait for Kafka: appended and read in order, durable, bounded. Blocking; call it from a thread.

A segment is deleted once the broker has acknowledged all of it, so after a crash at most one segment is sent twice: whoever reads the
topic ignores a record that it has seen.
Knows nothing about exposures.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import crc32c

from services.common.platform.errors import ConfigurationError
from services.common.platform.kafka_record import Record

_HEAD = struct.Struct("<II")  # body length, crc32c of the body
_LENGTH = struct.Struct("<I")
_SEGMENT_BYTES = 1024 * 1024
_SUFFIX = ".spool"
_SET_ASIDE = ".unreadable"


class Spool:
    """Records on disk, oldest first. Owned by one process (a lock file in the folder).

    Attributes:
        num_bytes: of records on disk, acknowledged ones of the oldest segment included.
        num_unreadable_bytes: left out while reading, because a writer died half-way.
    """

    def __init__(self, folder: Path, *, max_bytes: int, variable: str) -> None:
        """Open the folder and find what an earlier process left there.

        Args:
            folder: made when it is absent.
            max_bytes: most bytes of records on disk.
            variable: name of the setting that chose the folder, for the error message.
        Raises:
            ConfigurationError: the folder cannot be written, or another process has it.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = self._take_lock(variable)
        self._segments = sorted(folder.glob(f"*{_SUFFIX}"))
        self._sizes = {path: path.stat().st_size for path in self._segments}
        self.num_bytes = sum(self._sizes.values())
        self._next_index = int(self._segments[-1].stem) + 1 if self._segments else 0
        self._writer: BinaryIO | None = None
        self._front: Iterator[Record] | None = None
        self._read_ahead: list[Record] = []
        self.num_unreadable_bytes = 0

    def _take_lock(self, variable: str) -> BinaryIO:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = (self._folder / "lock").open("ab")
        except OSError as error:
            raise ConfigurationError(f"the spool folder {self._folder} cannot be written ({error.strerror}): set {variable}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise ConfigurationError(f"the spool folder {self._folder} belongs to a running router: set {variable} to another") from error
        return lock

    @property
    def empty(self) -> bool:
        """True when nothing waits."""
        return not self._segments and not self._read_ahead

    def append(self, records: Sequence[Record]) -> int:
        """Write the records and sync them; return how many fitted, counted from the first.

        Raises:
            OSError: the disk refused. Nothing of this call counts as written.
        """
        blobs: list[bytes] = []
        room = self._max_bytes - self.num_bytes
        for record in records:
            blob = _encode(record)
            room -= len(blob)
            if room < 0:
                break
            blobs.append(blob)
        if blobs:
            self._write(b"".join(blobs))
        return len(blobs)

    def _write(self, data: bytes) -> None:
        if self._writer is None or self._sizes[self._segments[-1]] >= _SEGMENT_BYTES:
            self._roll()
        if self._writer is None:
            raise OSError("the spool is closed")
        try:
            self._writer.write(data)
            self._writer.flush()
            os.fsync(self._writer.fileno())
        except OSError:
            # Half of it may be there; what comes later goes to a new segment, out of reach of the damage.
            with contextlib.suppress(OSError):  # closing flushes, and fails again; the first failure is the one to report
                self._close_writer()
            self._writer = None
            raise
        self._sizes[self._segments[-1]] += len(data)
        self.num_bytes += len(data)

    def _roll(self) -> None:
        self._close_writer()
        path = self._folder / f"{self._next_index:016d}{_SUFFIX}"
        self._writer = path.open("xb")
        self._next_index += 1
        self._segments.append(path)
        self._sizes[path] = 0

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def peek(self, limit: int) -> list[Record]:
        """Return up to `limit` of the oldest records without removing them; all are of one segment.

        Raises:
            OSError: the disk does not give the oldest segment. It stays; see `set_aside`.
        """
        while len(self._read_ahead) < limit and self._segments:
            if self._front is None:
                if len(self._segments) == 1:
                    self._close_writer()  # what is read is not written to any more
                self._front = self._read(self._segments[0])
            try:
                taken = list(itertools.islice(self._front, limit - len(self._read_ahead)))
            except OSError:
                # What has failed once yields nothing more, and would look like a segment that was read to its end.
                self._front = None
                raise
            self._read_ahead.extend(taken)
            if taken or self._read_ahead:
                break
            self._drop_front()
        return self._read_ahead[:limit]

    def advance(self, count: int, still_open: Sequence[Record] = ()) -> None:
        """Remove the `count` oldest records, which were peeked and then acknowledged; those that were not stay the oldest."""
        self._read_ahead[:count] = still_open

    def set_aside(self) -> int:
        """Take the oldest segment, which cannot be read, out of the order; return its bytes. Its file stays, under another name."""
        path = self._segments.pop(0)
        num_bytes = self._sizes.pop(path)
        self.num_bytes -= num_bytes
        self._front = None
        with contextlib.suppress(OSError):  # the disk fails already
            if not self._segments:
                self._close_writer()
            # Numbers begin anew when a process finds nothing: what was set aside before keeps its place.
            free = next(place for number in itertools.count() if not (place := path.with_suffix(f".{number}{_SET_ASIDE}")).exists())
            path.rename(free)
        return num_bytes

    def _drop_front(self) -> None:
        path = self._segments.pop(0)
        self.num_bytes -= self._sizes.pop(path)
        self._front = None
        # A file that stays is sent once more by the next process.
        with contextlib.suppress(OSError):
            path.unlink()

    def _read(self, path: Path) -> Iterator[Record]:
        """Yield a segment's whole records. What follows a damaged one is left out and counted: its writer died half-way."""
        data = path.read_bytes()
        position = 0
        while position < len(data):
            body = _body_at(data, position)
            if body is None:
                self.num_unreadable_bytes += len(data) - position
                return
            yield _decode(body)
            position += _HEAD.size + len(body)

    def close(self) -> None:
        """Close the files and give the folder back."""
        self._close_writer()
        self._lock.close()


def _body_at(data: bytes, position: int) -> bytes | None:
    if position + _HEAD.size > len(data):
        return None
    length, checksum = _HEAD.unpack_from(data, position)
    body = data[position + _HEAD.size : position + _HEAD.size + length]
    return body if len(body) == length and crc32c.crc32c(body) == checksum else None


def _encode(record: Record) -> bytes:
    fields = [record.topic.encode(), record.key or b"", record.value]
    for name, value in record.headers:
        fields += [name.encode(), value]
    body = b"".join(_LENGTH.pack(len(part)) + part for part in fields)
    return _HEAD.pack(len(body), crc32c.crc32c(body)) + body


def _decode(body: bytes) -> Record:
    fields: list[bytes] = []
    position = 0
    while position < len(body):
        (length,) = _LENGTH.unpack_from(body, position)
        position += _LENGTH.size
        fields.append(body[position : position + length])
        position += length
    topic, key, value, *headers = fields
    return Record(topic.decode(), key, value, [(name.decode(), part) for name, part in zip(headers[::2], headers[1::2], strict=True)])
