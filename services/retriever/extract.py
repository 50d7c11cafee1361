"""A file -> title and sections, by the reader of its format. Knows no folder and no index; what it gives is cleaned text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

from services.retriever.core.documents import Section
from services.retriever.core.text import paragraphs_of
from services.retriever.csv_text import read_csv, read_tsv
from services.retriever.encoding import decoded
from services.retriever.html_text import read_html
from services.retriever.markdown_text import read_markdown
from services.retriever.outline import TITLE_CHARS, Extracted, Unreadable


def extract(path: str, raw: bytes) -> Extracted:
    """Return the title and the sections of a file.

    Args:
        path: decides the format by its suffix, and the title where the content has none.
        raw: the whole file.
    Raises:
        Unreadable: of no known format, not UTF-8, or nested too deeply.
    """
    file = PurePosixPath(path)
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise Unreadable(f"{file.suffix or 'no suffix'} is none of {', '.join(sorted(_READERS))}")
    title, sections = reader(raw)
    return title[:TITLE_CHARS] or file.stem.replace("_", " ").replace("-", " "), sections


def _text(text: str) -> Extracted:
    paragraphs = paragraphs_of(text)
    return "", (Section(heading="", paragraphs=paragraphs),) if paragraphs else ()


def _of_text(read: Callable[[str], Extracted]) -> Callable[[bytes], Extracted]:
    def reader(raw: bytes) -> Extracted:
        try:
            text = decoded(raw)
        except UnicodeDecodeError as error:
            message = f"it is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8, or let an HTML page declare its charset"
            raise Unreadable(message) from error
        if "\x00" in text:
            raise Unreadable("it is not text: it holds a NUL character")
        return read(text)

    return reader


_READERS: dict[str, Callable[[bytes], Extracted]] = {
    ".txt": _of_text(_text),
    ".md": _of_text(read_markdown),
    ".markdown": _of_text(read_markdown),
    ".html": _of_text(read_html),
    ".htm": _of_text(read_html),
    ".csv": _of_text(read_csv),
    ".tsv": _of_text(read_tsv),
}
SUFFIXES = frozenset(_READERS)
"""Of the files that are read; all others are passed over."""
