"""A document of any source, cleaned, as it goes into the index: documents -> passages of about 200 tokens.

A passage never crosses a heading. Inside a section, paragraphs are packed as long as they fit; a longer one is cut between sentences,
a longer sentence between words. Consecutive passages of one section share their last and first sentences, so that what is said across
a cut is found from both sides.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

CATALOG = "catalog"
FILES = "files"
SOURCES = (CATALOG, FILES)

# Raised when the same document gives other passages: what an older program indexed is then indexed anew.
CHUNKING = 1

_WORD = re.compile(r"[^\W_]+|[^\w\s]|_+")
_LETTERS_PER_TOKEN = 6
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]]*\s+|(?<=[。！？])|\n")
_SPACES = re.compile(r"[ \t\f\v\u00a0\u2000-\u200a\u202f\u3000]+")
_BLANK_LINES = re.compile(r"\n\s*\n+")
# Format and control characters other than line breaks and tabs: soft hyphens, zero-width joiners, direction marks, NUL.
_INVISIBLE = frozenset({"Cc", "Cf", "Co", "Cs"})


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
class IndexedPassage:
    """A piece of a document, as it is found."""

    passage_id: str
    document_id: str
    source: str
    title: str
    text: str
    content_hash: str
    """Of its document."""

    @property
    def search_text(self) -> str:
        """What both halves of the search look at."""
        return f"{self.title}\n{self.text}" if self.title else self.text


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


def clean(text: str) -> str:
    """Return the text in composed Unicode (NFKC), without invisible characters, with single spaces and at most one blank line."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = unicodedata.normalize("NFKC", text)
    if not text.isascii() or not text.isprintable():
        text = "".join(char for char in text if char in "\n\t" or unicodedata.category(char) not in _INVISIBLE)
    text = "\n".join(line.strip() for line in _SPACES.sub(" ", text).split("\n"))
    return _BLANK_LINES.sub("\n\n", text).strip()


def paragraphs_of(text: str) -> tuple[str, ...]:
    """Return the cleaned text's paragraphs: what blank lines part."""
    return tuple(paragraph for paragraph in clean(text).split("\n\n") if paragraph)


def num_tokens(text: str) -> int:
    """Estimate the tokens of a text, without a tokenizer, so that passages are the same whichever embedder is in use.

    A word counts one for every six letters begun, a sign one, a letter outside of ASCII one: 3 to 20 % above WordPiece for English text.
    """
    return sum(_tokens_of(match) for match in _WORD.findall(text))


def _tokens_of(word: str) -> int:
    return -(len(word) // -_LETTERS_PER_TOKEN) if word.isascii() else len(word)


def passages_of(document: Document, limits: ChunkLimits) -> list[IndexedPassage]:
    """Return the document's passages, in order.

    The first of a catalogue item has the document's id; all others are numbered from 1: "docs/returns.md#3".
    """
    found: list[IndexedPassage] = []
    seen: set[tuple[str, str]] = set()
    for section in document.sections:
        title = _joined(document.title, section.heading)
        for text in _pack(section.paragraphs, limits):
            # Boilerplate that a page repeats helps nobody twice.
            if (title, text) in seen:
                continue
            seen.add((title, text))
            number = len(found) + 1
            single = document.source == CATALOG and number == 1
            found.append(
                IndexedPassage(
                    passage_id=document.document_id if single else f"{document.document_id}#{number}",
                    document_id=document.document_id,
                    source=document.source,
                    title=title,
                    text=text,
                    content_hash=document.content_hash,
                )
            )
    return found


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
        separator = "\n\n"
        for sentence in (part.strip() for part in _SENTENCE_END.split(paragraph)):
            if not sentence:
                continue
            for piece in _cut(sentence, max_tokens):
                yield separator, piece
                separator = " "


def _cut(sentence: str, max_tokens: int) -> Iterator[str]:
    if num_tokens(sentence) <= max_tokens:
        yield sentence
        return
    words: list[str] = []
    total = 0
    for word in _words_of(sentence, max_tokens):
        size = num_tokens(word)
        if words and total + size > max_tokens:
            yield " ".join(words)
            words, total = [], 0
        words.append(word)
        total += size
    if words:
        yield " ".join(words)


def _words_of(sentence: str, max_tokens: int) -> Iterator[str]:
    """Yield words; what has no spaces for a whole passage (Chinese, a hash, a URL) in slices of one token a letter at least."""
    for word in sentence.split():
        for start in range(0, len(word), max_tokens):
            yield word[start : start + max_tokens]
