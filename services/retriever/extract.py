"""A file -> title and sections, by the reader of its format. Knows no folder and no index; what it gives is cleaned text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

from services.retriever.core.documents import Section
from services.retriever.core.text import paragraphs_of
from services.retriever.csv_text import read_csv, read_tsv
from services.retriever.docx_text import read_docx
from services.retriever.encoding import decoded
from services.retriever.html_text import read_html
from services.retriever.kinds import PDF, SHEETS, SLIDES, SUFFIXES_OF, WORD, check_kind
from services.retriever.markdown_text import read_markdown
from services.retriever.office_package import PackageLimits
from services.retriever.outline import TITLE_CHARS, Extracted, Say, Unreadable, unheard
from services.retriever.pdf_text import read_pdf
from services.retriever.pptx_text import read_pptx
from services.retriever.xlsx_text import read_xlsx

_LIMITS = PackageLimits()
_Reader = Callable[[bytes, PackageLimits, Say], Extracted]


def extract(path: str, raw: bytes, limits: PackageLimits = _LIMITS, *, say: Say = unheard) -> Extracted:
    """Return the title and the sections of a file.

    Args:
        path: decides the format by its suffix, and the title where the content has none.
        raw: the whole file.
        limits: of files that are packed.
        say: is told what of the file its text lacks.
    Raises:
        Unreadable: of no known format, or of another than its name says; damaged, encrypted, without text, or over a limit.
    """
    file = PurePosixPath(path)
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise Unreadable(f"{file.suffix or 'no suffix'} is none of {', '.join(sorted(_READERS))}")
    check_kind(file.suffix.lower(), raw)
    title, sections = reader(raw, limits, say)
    return title[:TITLE_CHARS] or file.stem.replace("_", " ").replace("-", " "), sections


def _text(text: str) -> Extracted:
    paragraphs = paragraphs_of(text)
    return "", (Section(heading="", paragraphs=paragraphs),) if paragraphs else ()


def _of_text(read: Callable[[str], Extracted]) -> _Reader:
    def reader(raw: bytes, _: PackageLimits, __: Say) -> Extracted:
        try:
            text = decoded(raw)
        except UnicodeDecodeError as error:
            message = f"it is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8, or let an HTML page declare its charset"
            raise Unreadable(message) from error
        if "\x00" in text:
            raise Unreadable("it is not text: it holds a NUL character")
        return read(text)

    return reader


_OFFICE_READERS: dict[str, _Reader] = {PDF: read_pdf, WORD: read_docx, SLIDES: read_pptx, SHEETS: read_xlsx}
_READERS: dict[str, _Reader] = {
    ".txt": _of_text(_text),
    ".md": _of_text(read_markdown),
    ".markdown": _of_text(read_markdown),
    ".html": _of_text(read_html),
    ".htm": _of_text(read_html),
    ".csv": _of_text(read_csv),
    ".tsv": _of_text(read_tsv),
    **{suffix: reader for kind, reader in _OFFICE_READERS.items() for suffix in SUFFIXES_OF[kind]},
}
SUFFIXES = frozenset(_READERS)
"""Of the files that are read; all others are passed over."""
PARTLY_READ = frozenset(suffix for kind in _OFFICE_READERS for suffix in SUFFIXES_OF[kind])
"""Of those whose text may lack a part: their readers say which."""
