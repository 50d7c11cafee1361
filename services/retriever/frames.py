"""What the retriever and its reading process say to each other over two pipes: frames of a known length, text as JSON, never code.

    question    path (UTF-8) and the bytes of a file
    answer      JSON: {"title": …, "sections": [[heading, [paragraph, …]], …]} or {"refused": reason}; "last": the process ends after it

The process sends one answer before the first question, {}: it is ready.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import BinaryIO

from services.retriever.core.documents import Section
from services.retriever.outline import Extracted

MAX_ANSWER_BYTES = 256 * 1024 * 1024

_QUESTION = struct.Struct(">IQ")
_ANSWER = struct.Struct(">Q")


class Broken(Exception):
    """The other side ended, or what it sent is no frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """About one file. Neither text nor reason: the process is ready."""

    extracted: Extracted | None = None
    refused: str = ""
    is_last: bool = False
    """Whether the process ends after it."""


def write_question(pipe: BinaryIO, path: str, raw: bytes) -> None:
    """Raises:
    OSError: the other side ended.
    """
    name = path.encode("utf-8", "surrogatepass")
    pipe.write(_QUESTION.pack(len(name), len(raw)))
    pipe.write(name)
    pipe.write(raw)
    pipe.flush()


def read_question(pipe: BinaryIO) -> tuple[str, bytes] | None:
    """Return path and bytes; None once nobody asks any more.

    Raises:
        Broken: the pipe ended inside a question.
    """
    head = pipe.read(_QUESTION.size)
    if not head:
        return None
    name_bytes, raw_bytes = _QUESTION.unpack(_whole(head, _QUESTION.size))
    name = _whole(pipe.read(name_bytes), name_bytes)
    return name.decode("utf-8", "surrogatepass"), _whole(pipe.read(raw_bytes), raw_bytes)


def packed_answer(answer: Answer) -> bytes:
    """Return the frame of an answer."""
    fields: dict[str, object] = {"last": True} if answer.is_last else {}
    if answer.refused:
        fields["refused"] = answer.refused
    if answer.extracted is not None:
        fields["title"] = answer.extracted[0]
        fields["sections"] = [[section.heading, section.paragraphs] for section in answer.extracted[1]]
    body = json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return _ANSWER.pack(len(body)) + body


def read_answer(pipe: BinaryIO) -> Answer:
    """Raises:
    Broken: the other side ended, or what it sent is no answer.
    """
    (size,) = _ANSWER.unpack(_whole(pipe.read(_ANSWER.size), _ANSWER.size))
    if size > MAX_ANSWER_BYTES:
        raise Broken(f"an answer of {size} bytes; at most {MAX_ANSWER_BYTES} are read")
    body = _whole(pipe.read(size), size)
    try:
        fields = json.loads(body.decode("utf-8", "surrogatepass"))
        extracted = None
        if "title" in fields:
            sections = tuple(Section(heading=heading, paragraphs=tuple(paragraphs)) for heading, paragraphs in fields["sections"])
            extracted = fields["title"], sections
        return Answer(extracted=extracted, refused=fields.get("refused", ""), is_last=fields.get("last", False))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Broken(f"no answer: {error!r}") from error


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise Broken(f"it ended {size - len(data)} bytes early")
    return data
