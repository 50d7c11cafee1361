"""The answers of one partition that may still get feedback: a SQLite file, keyed by request id. In memory is only what was not flushed.

The log stays the truth: the file is a copy of a range of generations.v1, from some offset up to `next_offset`. A record that is not flushed
is not committed either, so it is read again; a file that is missing, damaged or of another broker's history is made again from the log
(`streams.curator.catch_up`). Bounded: beyond `max_bytes` the oldest answers go, and what SQLite has freed it uses again. Every answer has a
checksum, so a flipped bit costs a reading of the log and never gives a wrong answer.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import crc32c
from typing_extensions import override

from services.common.events.envelope import Headers, MalformedRecord
from services.common.events.generation import Generation
from services.common.events.wire.generation import parse_generation
from services.common.platform.errors import ConfigurationError, Unavailable
from streams.curator.core import Answers
from streams.partitioned.records import Record

_FORMAT = 1
# What a row costs in the file beside its value and headers.
_ROW_BYTES = 200
_FLUSH_RECORDS, _FLUSH_BYTES = 1_000, 1024 * 1024
_EVICTED_AT_ONCE = 50
_BUSY_TIMEOUT_S = 10.0
_CACHE_KIB = 1_024

# SQLite's result codes that say something about the machine, not about the file.
_OUTSIDE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOMEM,
    }
)
# A flipped bit in the file comes out of the sqlite3 module as any of these.
_ERRORS = (sqlite3.Error, ValueError, TypeError, OverflowError, MemoryError)

_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    log_offset INTEGER PRIMARY KEY, request_id TEXT NOT NULL, finished_at_ms INTEGER NOT NULL, size INTEGER NOT NULL,
    crc INTEGER NOT NULL, value BLOB, headers TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_request ON answers (request_id);
CREATE INDEX IF NOT EXISTS by_end ON answers (finished_at_ms);
CREATE TABLE IF NOT EXISTS position (id INTEGER PRIMARY KEY CHECK (id = 0), next_offset INTEGER NOT NULL);
INSERT OR IGNORE INTO position VALUES (0, 0);
"""

_log = logging.getLogger(__name__)


class AnswerStore(Answers):
    """The store of one partition. Of one thread at a time."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        """Open the file, and make it when it is not there; a damaged one is deleted and begun anew.

        Args:
            path: of the file; its folder is made.
            max_bytes: of all answers; beyond it the oldest go.
        Raises:
            ConfigurationError: the folder cannot be made.
            Unavailable: the file cannot be written, or another process holds it for too long, or the disk is full.
        """
        self._path, self._max_bytes = path, max_bytes
        self._pending: dict[str, tuple[Generation, Record]] = {}
        self._pending_bytes = 0
        self._num_evicted = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"{path.parent} cannot be made ({error.strerror}): set TUNEMESH_CURATOR_STORE_DIR to a folder that can"
            raise ConfigurationError(message) from error
        try:
            self._open()
        except _ERRORS as error:
            if _is_outside(error):
                raise Unavailable(f"{path}: {error}; set TUNEMESH_CURATOR_STORE_DIR to a folder that can be written") from error
            _log.error("%s is damaged (%s): it is made again from the log", path, error)
            _delete(path)
            self._open()

    def _open(self) -> None:
        database = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            database.execute("PRAGMA journal_mode = WAL")
            # What a power failure takes from the end of the file, the log still has.
            database.execute("PRAGMA synchronous = NORMAL")
            [(version,)] = database.execute("PRAGMA user_version")
            if version not in (0, _FORMAT):
                raise ValueError(f"format {version}, this program has {_FORMAT}")
            database.executescript(_TABLES)
            database.execute(f"PRAGMA user_version = {_FORMAT}")
            [(next_offset,)] = database.execute("SELECT next_offset FROM position")
            [(num_bytes,)] = database.execute("SELECT coalesce(sum(size), 0) FROM answers")
            self._next_offset, self._bytes = int(next_offset), int(num_bytes)
        except BaseException:
            database.close()
            raise
        self._database = database

    @property
    def next_offset(self) -> int:
        """Of the log: everything below is in the file, as far as it is not too old or too much; 0 for a new file."""
        return self._next_offset

    @property
    def num_bytes(self) -> int:
        """What all answers take, about."""
        return self._bytes + self._pending_bytes

    def newest(self) -> tuple[int, str] | None:
        """Return offset and request id of the newest flushed answer; None without any."""
        with self._speaking():
            row = self._database.execute("SELECT log_offset, request_id FROM answers ORDER BY log_offset DESC LIMIT 1").fetchone()
            return None if row is None else (int(row[0]), str(row[1]))

    @override
    def offset_of(self, request_id: str) -> int | None:
        if request_id in self._pending:
            return self._pending[request_id][1].offset
        with self._speaking():
            [offset] = self._database.execute("SELECT min(log_offset) FROM answers WHERE request_id = ?", (request_id,)).fetchone()
            return None if offset is None else int(offset)

    @override
    def get(self, request_id: str) -> Generation | None:
        if request_id in self._pending:
            return self._pending[request_id][0]
        query = "SELECT crc, value, headers FROM answers WHERE request_id = ? ORDER BY log_offset LIMIT 1"
        with self._speaking():
            row = self._database.execute(query, (request_id,)).fetchone()
            return None if row is None else _answer_of(request_id, *row)

    @override
    def put(self, generation: Generation, record: Record) -> None:
        self._pending[generation.request_id] = (generation, record)
        self._pending_bytes += _size_of(record)
        if len(self._pending) >= _FLUSH_RECORDS or self._pending_bytes >= _FLUSH_BYTES:
            self._write(record.offset + 1)

    @override
    def flush(self, next_offset: int) -> int:
        if self._pending or next_offset > self._next_offset:
            self._write(next_offset)
        num_evicted, self._num_evicted = self._num_evicted, 0
        return num_evicted

    def _write(self, next_offset: int) -> None:
        rows = []
        for request_id, (generation, record) in self._pending.items():
            headers, size = _packed(record.headers), _size_of(record)
            crc = _crc_of(request_id, record.value, headers)
            rows.append((record.offset, request_id, generation.finished_at_ms, size, crc, record.value, headers))
        with self._speaking(), self._transaction():
            known = self._deleted("log_offset IN (SELECT value FROM json_each(?))", json.dumps([row[0] for row in rows]))
            self._database.executemany("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            self._database.execute("UPDATE position SET next_offset = max(next_offset, ?)", (next_offset,))
            self._bytes += self._pending_bytes
            while self._bytes > self._max_bytes:
                gone = self._deleted("log_offset IN (SELECT log_offset FROM answers ORDER BY log_offset LIMIT ?)", _EVICTED_AT_ONCE)
                self._num_evicted += gone
                if not gone:
                    break
        if known:
            _log.debug("%d answers stood in %s already", known, self._path)
        self._next_offset = max(self._next_offset, next_offset)
        self._pending.clear()
        self._pending_bytes = 0

    @override
    def expire(self, before_ms: int) -> int:
        with self._speaking():
            [oldest_ms] = self._database.execute("SELECT min(finished_at_ms) FROM answers").fetchone()
            if oldest_ms is None or oldest_ms >= before_ms:
                return 0
            with self._transaction():
                return self._deleted("finished_at_ms < ?", before_ms)

    def clear(self) -> None:
        """Forget everything: the log is another than the one that was copied."""
        self._pending.clear()
        self._pending_bytes = 0
        with self._speaking(), self._transaction():
            self._database.execute("DELETE FROM answers")
            self._database.execute("UPDATE position SET next_offset = 0")
        self._next_offset = self._bytes = 0

    def close(self) -> None:
        """Close the file. What was not flushed is read again from the log."""
        self._database.close()

    def _deleted(self, where: str, value: int | str) -> int:
        """Delete rows inside a transaction, and count them out; return how many."""
        sizes = [int(row[0]) for row in self._database.execute(f"DELETE FROM answers WHERE {where} RETURNING size", (value,))]
        self._bytes -= sum(sizes)
        return len(sizes)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # what went wrong first is what counts
                self._database.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        """What goes wrong becomes Unavailable: the process ends, and the next one takes up from the committed offsets."""
        try:
            yield
        except (MalformedRecord, *_ERRORS) as error:
            if _is_outside(error):
                raise Unavailable(f"{self._path}: {error}; is the disk full, or does another curator hold the file?") from error
            self._database.close()
            _delete(self._path)
            raise Unavailable(f"{self._path} is damaged ({error}): the next start makes it again from the log") from error


def _delete(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _is_outside(error: Exception) -> bool:
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _OUTSIDE


def _answer_of(request_id: str, crc: object, value: object, headers: object) -> Generation:
    """Raises ValueError or MalformedRecord for a row that is not what was written."""
    if not isinstance(value, bytes) or not isinstance(headers, str) or crc != _crc_of(request_id, value, headers):
        raise ValueError(f"the checksum of the answer to {request_id} is wrong")
    return parse_generation(value, tuple((name, text.encode("latin-1")) for name, text in json.loads(headers)))


def _size_of(record: Record) -> int:
    return len(record.value or b"") + sum(len(name) + len(value or b"") for name, value in record.headers) + _ROW_BYTES


def _packed(headers: Headers) -> str:
    """JSON of the headers; latin-1 is a letter for each byte."""
    return json.dumps([(name, (value or b"").decode("latin-1")) for name, value in headers])


def _crc_of(request_id: str, value: bytes | None, headers: str) -> int:
    return int(crc32c.crc32c(headers.encode(), crc32c.crc32c(value or b"", crc32c.crc32c(request_id.encode()))))
