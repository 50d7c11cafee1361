"""The reading process: takes files, gives their passages. `python -m services.retriever.extraction LIMITS CHUNKS`.

It also cuts the text into passages and finds their index words, which takes longer than the reading. It reads what strangers wrote, with
parsers of others: it has a limit of processor time for each file and one of memory, none of the
retriever's secrets in its environment, and a lower priority than searches. It ends when its standard input does. Knows no folder and no
index.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

from services.common.platform.secrets import guard_output
from services.retriever.core.documents import ChunkLimits, PassageText, texts_of
from services.retriever.extract import extract
from services.retriever.frames import Answer, packed_answer, read_question
from services.retriever.office_package import PackageLimits
from services.retriever.outline import Extracted, Say, Unreadable

_NICENESS = 5
# Of what is resident: a process that has read something large is replaced, since freed memory is seldom given back.
# Of text and words in one answer: what the retriever takes in a millisecond or two.
_ANSWER_CHARS = 64 * 1024
_WORN_BYTES = 192 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionLimits:
    """What one file may cost; a file over it is refused, and the reason names the setting.

    Attributes:
        cpu_ms: processor time for one file, so that a busy machine refuses nothing that an idle one reads.
        cpu_setting, memory_setting: how an operator changes them.
        memory_bytes: of the whole process.
        unpacked_bytes: of a file that is packed, as Office files are.
    """

    cpu_ms: int
    cpu_setting: str
    memory_bytes: int
    memory_setting: str
    unpacked_bytes: int
    unpacked_setting: str

    @property
    def too_slow(self) -> str:
        """Why a file is refused that takes too long."""
        return f"reading it takes more than {self.cpu_ms / 1e3:g} s of processor time; split it, or raise {self.cpu_setting}"

    @property
    def too_large(self) -> str:
        """Why a file is refused that takes too much memory."""
        return f"reading it takes more than {self.memory_bytes // 2**20} MiB of memory; split it, or raise {self.memory_setting}"


class Read(Protocol):
    """Gives the text of a file; `say` is told what the text lacks. Raises Unreadable."""

    def __call__(self, path: str, raw: bytes, *, say: Say) -> Extracted: ...  # noqa: D102


def serve(limits: ExtractionLimits, chunks: ChunkLimits, read: Read = extract) -> None:
    """Answer questions until there are none.

    Args:
        limits: the kernel ends the process, by SIGPROF, when reading one file takes more processor time.
        chunks: how long passages are.
        read: reads a file.
    """
    asked, answers = _pipes()
    os.nice(_NICENESS)
    _limit_memory(limits.memory_bytes)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a retriever that is gone hears no answer: no traceback about that
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the retriever, whose end ends this process
    gc.disable()  # trees of a million nodes without cycles: looking for cycles takes a tenth of the time, and a worn process is replaced
    warnings.simplefilter("ignore")
    logging.disable()  # libraries complain of what is odd in a file; what matters is the answer
    answers.write(packed_answer(Answer()))
    answers.flush()
    while (question := read_question(asked)) is not None:
        replies = _answers(read, *question, limits, chunks)
        del question
        for answer in replies:
            answers.write(packed_answer(answer))
            answers.flush()
        if answer.is_last:
            return


def _answers(read: Read, path: str, raw: bytes, limits: ExtractionLimits, chunks: ChunkLimits) -> Iterator[Answer]:
    left_out: list[str] = []
    try:
        # Enforced by the kernel, also while a parser in C runs. Reading is what a file can make slow; cutting takes as long as there is
        # text, so each part of it has the time anew.
        with _limited_time(limits):
            title, sections = read(path, raw, say=left_out.append)
        del raw
        texts = texts_of(path, title, sections, chunks)
        while True:
            with _limited_time(limits):
                some = tuple(_some(texts))
            if not some:
                break
            yield Answer(passages=some, more=True)
        yield Answer(left_out=tuple(left_out), is_last=_resident_bytes() > _WORN_BYTES)
    except Unreadable as error:
        yield Answer(refused=str(error))
    except MemoryError:
        yield Answer(refused=limits.too_large, is_last=True)
    except Exception as error:  # noqa: BLE001 # a parser of others failed in a way of its own: the traceback is logged, the file refused
        traceback.print_exc()
        yield Answer(refused=f"its reader failed: {type(error).__name__}: {str(error)[:200]}", is_last=True)


@contextmanager
def _limited_time(limits: ExtractionLimits) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_ms / 1e3)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _some(texts: Iterator[PassageText]) -> Iterator[PassageText]:
    """Yield the passages of one answer."""
    num_chars = 0
    for text in texts:
        yield text
        num_chars += len(text.text) + len(text.words)
        if num_chars >= _ANSWER_CHARS:
            return


def _pipes() -> tuple[BinaryIO, BinaryIO]:
    """Return the two pipes; what a library prints goes to standard error and not between the answers."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return sys.stdin.buffer, answers


def _resident_bytes() -> int:
    """Return the memory in use; 0 where there is no /proc. getrusage would count what the retriever had when it started this process."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except FileNotFoundError:
        return 0


def _limit_memory(limit_bytes: int) -> None:
    for kind, wanted in ((resource.RLIMIT_DATA, limit_bytes), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(kind)
        most = math.inf if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(kind, (int(min(wanted, most)), hard))


def main(argv: list[str]) -> None:
    """Serve under the limits that the arguments state."""
    guard_output(os.environ)
    limits, chunks = arguments(argv)
    packed = PackageLimits(max_bytes=limits.unpacked_bytes, setting=limits.unpacked_setting)
    serve(limits, chunks, partial(extract, limits=packed))


def arguments(argv: list[str]) -> tuple[ExtractionLimits, ChunkLimits]:
    """Return what the command line says."""
    return ExtractionLimits(**json.loads(argv[1])), ChunkLimits(**json.loads(argv[2]))


if __name__ == "__main__":
    main(sys.argv)
