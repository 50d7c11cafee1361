"""Reads files in a process of its own, so that no file stops searches, and none that ends its reader ends the retriever."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import BinaryIO

from services.common.platform.errors import Unavailable
from services.retriever.core.documents import ChunkLimits, FileText, PassageText
from services.retriever.extraction import ExtractionLimits
from services.retriever.frames import Answer, Broken, read_answer, write_question
from services.retriever.outline import Unreadable

# A process that dies for a reason of its own, or by another's hand, is asked once more: what killed it need not be the file.
_ATTEMPTS = 2
_COMMAND = (sys.executable, "-m", "services.retriever.extraction")

_log = logging.getLogger(__name__)


class ExtractionUnavailable(Unavailable):
    """No reading process can be started, or it was closed. Retry later."""


class ExtractionProcess:
    """Starts the process with the first file, and again whenever it has ended. One thread reads; any may close."""

    def __init__(self, limits: ExtractionLimits, chunks: ChunkLimits, command: Sequence[str] = _COMMAND) -> None:
        """`command` starts a process that speaks `frames`; limits and chunks are its last arguments. Nothing is started yet."""
        self._limits, self._command = limits, (*command, *(json.dumps(asdict(some)) for some in (limits, chunks)))
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """Of the process that reads, or waits for the next file; None before the first."""
        process = self._process
        return process.pid if process is not None else None

    def read(self, path: str, raw: bytes) -> FileText:
        """Return what the passages of a file say; none when it has no text. Blocks: call it off the event loop.

        Raises:
            Unreadable: the file is refused; over a limit, the reason names the setting.
            ExtractionUnavailable: it says nothing about the file.
        """
        ends: list[str] = []
        while len(ends) < _ATTEMPTS:
            process = self._running()
            try:
                passages, answer = _asked(process, path, raw)
            except (Broken, OSError, ValueError) as error:  # ValueError: `close` closed the pipe
                end = self._ended(process)
                if self._is_closed:
                    raise ExtractionUnavailable("reading was closed") from error
                if end == -signal.SIGPROF:
                    raise Unreadable(self._limits.too_slow) from error
                if end == -signal.SIGABRT:
                    raise Unreadable(f"its parser gave up, as parsers in C do for want of memory: {self._limits.too_large}") from error
                ends.append(_described(end, error))
                _log.warning("the process that read %s ended: %s", path, ends[-1])
                continue
            if answer.is_last:
                self._ended(process)
            if answer.refused:
                raise Unreadable(answer.refused)
            return FileText(passages, answer.left_out)
        raise Unreadable(f"whoever reads it dies of it: {', then '.join(ends)}; it is tried again once it changes, or at the next start")

    def close(self) -> None:
        """End the process, also in the middle of a file: who waits for it gets ExtractionUnavailable."""
        with self._lock:
            self._is_closed = True
            process, self._process = self._process, None
        if process is not None:
            _end(process)

    def _running(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._is_closed:
                raise ExtractionUnavailable("reading was closed")
            if self._process is not None:
                return self._process
            self._process = self._started()
        process = self._process
        try:
            read_answer(_pipe(process.stdout))
        except (Broken, OSError, ValueError) as error:
            raise ExtractionUnavailable(f"the reading process cannot be started: {_described(self._ended(process), error)}") from error
        return process

    def _started(self) -> subprocess.Popen[bytes]:
        try:
            # It gets where to import from and nothing else of the environment, which holds secrets.
            environment = {"PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder)}
            return subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        except OSError as error:
            raise ExtractionUnavailable(f"the reading process cannot be started: {error}") from error

    def _ended(self, process: subprocess.Popen[bytes]) -> int:
        """End and forget the process; return its exit code, negative when a signal ended it."""
        with self._lock:
            if self._process is process:
                self._process = None
        return _end(process)


def _asked(process: subprocess.Popen[bytes], path: str, raw: bytes) -> tuple[tuple[PassageText, ...], Answer]:
    """Return the passages of all answers about a file, and the last answer."""
    write_question(_pipe(process.stdin), path, raw)
    passages: list[PassageText] = []
    while True:
        answer = read_answer(_pipe(process.stdout))
        passages.extend(answer.passages)
        if not answer.more:
            return tuple(passages), answer


def _pipe(pipe: object) -> BinaryIO:
    return pipe  # type: ignore[return-value] # both are pipes: `_started` says so


def _end(process: subprocess.Popen[bytes]) -> int:
    # Its pipes are broken or what it says is of no use: SIGKILL changes nothing for a process that has ended by itself.
    try:
        process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        process.kill()
    code = process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue  # bytes that nobody will read any more
    return code


def _described(code: int, error: Exception) -> str:
    if code < 0:
        return f"by {signal.Signals(-code).name}"
    return f"with exit code {code} ({error})"
