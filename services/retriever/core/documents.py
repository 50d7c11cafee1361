"""A document of any source, cleaned, as it goes into the index: documents -> passages of about 200 tokens.

A passage never crosses a heading. Inside a section, paragraphs are packed as long as they fit; a longer one is cut between sentences,
a longer sentence between words. Consecutive passages of one section share their last and first sentences, so that what is said across
a cut is found from both sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.retriever.core.index_words import words_of_passage
from services.retriever.core.text import num_tokens, pieces_of, searchable, sentences_of

CATALOG = "catalog"
FILES = "files"
SOURCES = (CATALOG, FILES)

# Raised when the same document gives other passages: what an older program indexed is then indexed anew.
CHUNKING = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What stands under one heading. `heading`: the path to it, e.g. "Returns > Late fees"; empty before the first."""

    heading: str
    paragraphs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One file or one item of the catalogue.

    Attributes:
        document_id: "catalog:172", "docs/returns.md": unique over all sources.
        source: "catalog" or "files".
        content_hash: changes when the passages would; see `hash_of`.
    """

    document_id: str
    source: str
    title: str
    sections: tuple[Section, ...]
    content_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PassageText:
    """What a passage says, and how it is found.

    Attributes:
        title: of the document and the headings above it.
        text: as it is shown.
        search_text: what is embedded.
        words: what the search by words looks at.
    """

    title: str
    text: str
    search_text: str
    words: str


class FileText(NamedTuple):
    """What was read of a file."""

    passages: tuple[PassageText, ...]
    left_out: tuple[str, ...] = ()
    """What of the file they lack, each in half a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedPassage:
    """A piece of a document, as it is found. Title to words: see `PassageText`."""

    passage_id: str
    document_id: str
    source: str
    title: str
    text: str
    search_text: str
    words: str
    content_hash: str
    """Of its document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutDocument:
    """A document whose passages are there already. Attributes: see `Document`."""

    document_id: str
    source: str
    texts: tuple[PassageText, ...]
    content_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkLimits:
    """How long passages are. Tokens as `num_tokens` estimates them."""

    max_tokens: int
    overlap_tokens: int


def hash_of(content: bytes, limits: ChunkLimits) -> str:
    """Return the content hash of a document made of these bytes."""
    digest = hashlib.sha256(f"{CHUNKING}/{limits.max_tokens}/{limits.overlap_tokens}\n".encode())
    digest.update(content)
    return digest.hexdigest()


def cut(document: Document, limits: ChunkLimits) -> CutDocument:
    """Return the document with its passages in place of its sections."""
    texts = tuple(texts_of(document.document_id, document.title, document.sections, limits))
    return CutDocument(document_id=document.document_id, source=document.source, texts=texts, content_hash=document.content_hash)


def texts_of(document_id: str, title: str, sections: Iterable[Section], limits: ChunkLimits) -> Iterator[PassageText]:
    """Yield what the passages of a document say, in order."""
    seen: set[tuple[str, str]] = set()
    for section in sections:
        path = _joined(title, section.heading)
        for text in _pack(section.paragraphs, limits):
            # Boilerplate that a page repeats helps nobody twice.
            if (path, text) not in seen:
                seen.add((path, text))
                yield passage_text(document_id, path, text)


def passage_text(document_id: str, title: str, text: str) -> PassageText:
    """Return a passage with what it is found by."""
    search_text = searchable(f"{title}\n{text}" if title else text)
    return PassageText(title=title, text=text, search_text=search_text, words=words_of_passage(document_id, title, text))


def passages_of(document: CutDocument) -> list[IndexedPassage]:
    """Return the document's passages, in order.

    The first of a catalogue item has the document's id; all others are numbered from 1: "docs/returns.md#3".
    """
    return [
        IndexedPassage(
            passage_id=document.document_id if document.source == CATALOG and number == 1 else f"{document.document_id}#{number}",
            document_id=document.document_id,
            source=document.source,
            title=text.title,
            text=text.text,
            search_text=text.search_text,
            words=text.words,
            content_hash=document.content_hash,
        )
        for number, text in enumerate(document.texts, start=1)
    ]


def _joined(title: str, heading: str) -> str:
    """A page's first heading is often its title: it is written once."""
    if not heading or heading == title:
        return title
    return heading if heading.startswith(f"{title} > ") or not title else f"{title} > {heading}"


def _pack(paragraphs: Sequence[str], limits: ChunkLimits) -> Iterator[str]:
    pieces: list[tuple[str, str, int]] = []  # the separator before it, the piece, its tokens
    total = 0
    for separator, piece in _pieces(paragraphs, limits.max_tokens):
        size = num_tokens(piece)
        if pieces and total + size > limits.max_tokens:
            yield _text_of(pieces)
            pieces = _overlap(pieces, min(limits.overlap_tokens, limits.max_tokens - size))
            total = sum(kept[2] for kept in pieces)
        pieces.append((separator, piece, size))
        total += size
    if pieces:
        yield _text_of(pieces)


def _overlap(pieces: Sequence[tuple[str, str, int]], max_tokens: int) -> list[tuple[str, str, int]]:
    kept: list[tuple[str, str, int]] = []
    for piece in reversed(pieces):
        max_tokens -= piece[2]
        if max_tokens < 0:
            break
        kept.insert(0, piece)
    return kept


def _text_of(pieces: Iterable[tuple[str, str, int]]) -> str:
    return "".join(separator + piece for separator, piece, _ in pieces).strip()


def _pieces(paragraphs: Sequence[str], max_tokens: int) -> Iterator[tuple[str, str]]:
    """Yield sentences, each with what stands before it; a sentence that is too long by itself is cut between words."""
    for paragraph in paragraphs:
        first = "\n\n"
        for separator, sentence in sentences_of(paragraph):
            for number, (inner, piece) in enumerate(pieces_of(sentence, max_tokens)):
                yield first or (inner if number else separator), piece
                first = ""
