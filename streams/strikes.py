"""Remembers which records a worker died on, over its death: one that kills its worker twice goes to the dead letters.

A record that raises an error nobody foresaw, or that makes the process run out of memory, is read again by the next process, which dies of
it again; its partition stands still. So a strike is noted against a record when the worker fails on it. The next process works on a
record with a strike alone, so that those that were in a batch with the culprit are cleared; one with two strikes it sets aside.

Two ways to die are seen: an error (`on_trial`), and a process that ends in the middle of a record (`working_on`: a note in a mapped file,
which the kernel keeps when the process is gone). A process that is killed by somebody, twice, within the same millisecond of the same
record's work makes an innocent dead letter; `tunemesh dlq redrive` brings it back.

The file lies in the system's folder for temporary files unless the settings name another one: a container that is restarted finds it, a
new one begins without strikes, and then a record needs two deaths of that one. Knows no topic, neither Kafka nor Faust.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

_log = logging.getLogger(__name__)

CONDEMNED_AT = 2
# Of records with strikes; the oldest are forgotten.
_MAX_REMEMBERED = 1_000
# is a record being worked on, its partition, its offset, the CRC-32 of its value, the length of its topic's name; then the name
_MARK = struct.Struct("<BiqIH")
_FILE_BYTES = 4_096
_KILLED = "the process ended in the middle of it: killed, out of memory, or a crash below Python"


class Readable(Protocol):
    """A record as any Kafka client gives it."""

    @property
    def topic(self) -> str:
        """Name."""

    @property
    def partition(self) -> int:
        """Number."""

    @property
    def offset(self) -> int:
        """In the partition."""

    @property
    def value(self) -> bytes | None:
        """None: a tombstone."""


@dataclass(frozen=True, slots=True)
class RecordId:
    """Which record. The CRC of its value tells it from one at the same place in another broker's log."""

    topic: str
    partition: int
    offset: int
    crc: int

    @classmethod
    def of(cls, record: Readable) -> RecordId:
        """Return the id of a record."""
        return cls(record.topic, record.partition, record.offset, zlib.crc32(record.value or b""))

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


@dataclass(slots=True)
class _Strike:
    deaths: int
    error: str


class Strikes:
    """The strikes of one worker. Make one per process, and `close` it.

    Without a folder that can be written, or when another living process has the file, it remembers nothing beyond the process.
    """

    def __init__(self, path: Path | None) -> None:
        """Take up what the last process left, and note a strike if it ended in the middle of a record.

        Args:
            path: a file of this worker's own; a second one, for the mark, lies beside it. None: remember nothing beyond the process.
        """
        self._struck: dict[RecordId, _Strike] = {}
        self._lock = -1  # file descriptor
        self._noted: Exception | None = None
        self._mark: mmap.mmap | None = None
        self._path = path
        if path is not None:
            try:
                self._open(path)
            except OSError as error:
                _log.warning("%s: strikes are not remembered over the end of this process: %s", path, error)

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_suffix(".mark"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_size != _FILE_BYTES:
                os.truncate(lock, 0)
                os.truncate(lock, _FILE_BYTES)
            mark = mmap.mmap(lock, _FILE_BYTES)
        except OSError:
            os.close(lock)
            raise
        self._lock, self._mark = lock, mark
        self._read(path)
        died_on = _marked(mark)
        if died_on is not None:
            mark[0] = 0
            self.strike([died_on], _KILLED)

    def close(self) -> None:
        """Let go of the files."""
        if self._mark is not None:
            self._mark.close()
            self._mark = None
            os.close(self._lock)

    def is_suspect(self, record: Readable) -> bool:
        """Whether the worker died on this record, or on a batch with it in it: work on it alone."""
        return bool(self._struck) and RecordId.of(record) in self._struck

    def condemned(self, record: Readable) -> str:
        """Return why the record is to be set aside, for its dead letter; empty when it may be worked on."""
        strike = self._struck.get(RecordId.of(record)) if self._struck else None
        if strike is None or strike.deaths < CONDEMNED_AT:
            return ""
        return f"the worker died on it {strike.deaths} times: {strike.error}"

    @contextlib.contextmanager
    def working_on(self, record: Readable, *, unless: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Mark the record while work on it is done without a pause (no `await`); an error is a strike, those of `unless` are not."""
        self._set_mark(RecordId.of(record))
        try:
            yield
        except unless:
            raise
        except Exception as error:
            self._note([record], error)
            raise
        finally:
            if self._mark is not None:
                self._mark[0] = 0

    @contextlib.contextmanager
    def on_trial(self, records: Sequence[Readable], *, unless: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """All work on some records: note a strike against each when it ends in an error, and clear them when it does not.

        Args:
            records: worked on together; they must keep their values meanwhile.
            unless: errors that are not the records' fault.
        """
        try:
            yield
        except unless:
            raise
        except Exception as error:
            self._note(records, error)
            raise
        if self._struck:
            self._pardon([RecordId.of(record) for record in records])

    def _note(self, records: Sequence[Readable], error: Exception) -> None:
        """Note an error once: a guard further in knew better which record it was."""
        if error is not self._noted:
            self._noted = error
            self.strike([RecordId.of(record) for record in records], f"{type(error).__name__}: {error}")

    def strike(self, ids: Sequence[RecordId], error: str) -> None:
        """Note one more death at each of the records."""
        for one in ids:
            earlier = self._struck.pop(one, None)
            self._struck[one] = _Strike(1 if earlier is None else earlier.deaths + 1, error[:500])
        for old in list(self._struck)[: max(len(self._struck) - _MAX_REMEMBERED, 0)]:
            del self._struck[old]
        if len(ids) == 1:
            _log.error("the worker fails on %s for the %d. time: %s", ids[0], self._struck[ids[0]].deaths, error)
        self._write()

    def _pardon(self, ids: Sequence[RecordId]) -> None:
        known = [one for one in ids if one in self._struck]
        for one in known:
            del self._struck[one]
        if known:
            self._write()

    def _set_mark(self, record: RecordId) -> None:
        if self._mark is not None:
            name = record.topic.encode()
            _MARK.pack_into(self._mark, 0, 0, record.partition, record.offset, record.crc, len(name))
            self._mark[_MARK.size : _MARK.size + len(name)] = name
            self._mark[0] = 1  # last: a mark that is half written marks nothing

    def _read(self, path: Path) -> None:
        try:
            for entry in json.loads(path.read_bytes()):
                one = RecordId(str(entry["topic"]), int(entry["partition"]), int(entry["offset"]), int(entry["crc"]))
                self._struck[one] = _Strike(int(entry["deaths"]), str(entry["error"]))
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._struck.clear()
            _log.warning("%s: earlier strikes cannot be read and are forgotten: %r", path, error)

    def _write(self) -> None:
        if self._mark is None or self._path is None:
            return
        text = json.dumps([asdict(one) | asdict(strike) for one, strike in self._struck.items()])
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(self._path)
        except OSError as error:
            _log.warning("%s: a strike is not remembered over the end of this process: %s", self._path, error)


def _marked(mark: mmap.mmap) -> RecordId | None:
    active, partition, offset, crc, length = _MARK.unpack_from(mark, 0)
    if active != 1 or _MARK.size + length > _FILE_BYTES:
        return None
    return RecordId(mark[_MARK.size : _MARK.size + length].decode("utf-8", "replace"), partition, offset, crc)


def strikes_of(folder: str, app_id: str, worker_id: str, bootstrap_servers: str) -> Strikes:
    """Return the strikes of a worker; `folder` empty: in the system's folder for temporary files."""
    where = zlib.crc32(f"{os.getuid()}/{bootstrap_servers}/{worker_id}".encode())
    return Strikes(Path(folder or tempfile.gettempdir()) / f"{app_id}-{where:08x}.strikes")
