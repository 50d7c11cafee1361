"""A reading process whose files say what becomes of it: `python -m tests.odd_reader LIMITS CHUNKS`. No setting leads here."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

from services.retriever.core.documents import Section
from services.retriever.extract import extract
from services.retriever.extraction import arguments, serve
from services.retriever.outline import Extracted, Say


def failing() -> Iterator[Section]:
    for number in range(5_000):
        yield Section(heading="", paragraphs=(f"Paragraph {number}.",))
    raise MemoryError


def read(path: str, raw: bytes, *, say: Say) -> Extracted:
    match path:
        case "loops.txt":
            while True:
                pass
        case "loops_in_c.txt":
            return str(sum(range(10**15))), ()
        case "takes_memory.txt":
            return str(len(bytearray(10**13))), ()
        case "grows.txt":
            grown = []
            while True:
                grown.append(bytearray(10**6))
        case "crashes.txt":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "fails.txt":
            raise LookupError("no such part")
        case "fails_late.txt":
            return "", failing()  # type: ignore[return-value] # sections that fail while they are cut
        case "prints.txt":
            print("a library says something")
            os.write(1, b"and so does its C")
    return extract(path, raw, say=say)


if __name__ == "__main__":
    serve(*arguments(sys.argv), read)
