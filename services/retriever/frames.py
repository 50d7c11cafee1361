"""What the retriever and its reading process say to each other over two pipes: frames of a known length, text as JSON, never code.

    question    path (UTF-8) and the bytes of a file
    answer      JSON: {"passages": [[title, text, what is embedded or null, index words], …]}; "more": another one about the same file
                follows; "left_out", in the last of these: what the passages lack. Or {"refused": reason}, also after some passages.
                "last": the process ends after it

The process sends one answer before the first question, {}: it is ready. A large file has many answers, since whoever reads one holds the
interpreter that searches need.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import BinaryIO

from services.retriever.core.documents import PassageText

MAX_ANSWER_BYTES = 256 * 1024 * 1024

_QUESTION = struct.Struct(">IQ")
_ANSWER = struct.Struct(">Q")


class Broken(Exception):
    """The other side ended, or what it sent is no frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """About one file, or a part of it. Neither passages nor reason: the process is ready, or there are no more."""

    passages: tuple[PassageText, ...] = ()
    more: bool = False
    """Whether another answer about the same file follows."""
    left_out: tuple[str, ...] = ()
    """What of the file its passages lack; said with the last of them."""
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
    if answer.more:
        fields["more"] = True
    if answer.left_out:
        fields["left_out"] = answer.left_out
    if answer.passages:
        fields["passages"] = [_packed(passage) for passage in answer.passages]
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
        passages = tuple(_unpacked(*packed) for packed in fields.get("passages", ()))
        more, refused, is_last = fields.get("more", False), fields.get("refused", ""), fields.get("last", False)
        left_out = tuple(str(one) for one in fields.get("left_out", ()))
        return Answer(passages=passages, more=more, left_out=left_out, refused=refused, is_last=is_last)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Broken(f"no answer: {error!r}") from error


def _packed(passage: PassageText) -> list[str | None]:
    # Most texts are embedded as they are shown.
    usual = _embedded_as_shown(passage.title, passage.text)
    return [passage.title, passage.text, None if passage.search_text == usual else passage.search_text, passage.words]


def _unpacked(title: str, text: str, search_text: str | None, words: str) -> PassageText:
    search_text = _embedded_as_shown(title, text) if search_text is None else search_text
    return PassageText(title=title, text=text, search_text=search_text, words=words)


def _embedded_as_shown(title: str, text: str) -> str:
    return f"{title}\n{text}" if title else text


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise Broken(f"it ended {size - len(data)} bytes early")
    return data
