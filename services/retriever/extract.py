"""Text, Markdown and HTML -> sections of a document. Knows no folder and no index; what it gets is bytes, what it gives is cleaned text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from bs4 import BeautifulSoup
from bs4.element import NavigableString, Tag
from bs4.exceptions import ParserRejectedMarkup
from markdown_it import MarkdownIt
from markdown_it.token import Token

from services.retriever.core.documents import Section
from services.retriever.core.text import clean, clean_code, joined_lines, paragraphs_of
from services.retriever.encoding import decoded
from services.retriever.tables import rows_of, rows_of_markdown

Extracted = tuple[str, tuple[Section, ...]]
"""Title (may be empty) and sections."""

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
# Not text of the page itself. The title goes too, once it is known; the head stays, since a page without its end is all head.
_DROPPED = (
    "title",
    "script",
    "style",
    "noscript",
    "template",
    "svg",
    "nav",
    "header",
    "footer",
    "aside",
    "button",
    "iframe",
    "object",
)
_BLOCKS = re.compile(
    "address|article|blockquote|body|caption|dd|details|div|dl|dt|fieldset|figcaption|figure|hr|html|li|main|ol|p|pre|section|summary|"
    "table|tbody|td|tfoot|th|thead|tr|ul"
)
_CODE = -1
_HARD_BREAK = "\ufdd0"  # no character: it marks a break that is meant while others are joined
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n(?:---|\.\.\.)\s*\n", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:(.*)$", re.MULTILINE)
_TITLE_CHARS = 200


class Unreadable(Exception):
    """A file whose text cannot be taken; the message says why. It is refused until it changes."""


def extract(path: str, raw: bytes) -> Extracted:
    """Return the title and the sections of a file.

    Args:
        path: decides the format by its suffix, and the title where the content has none.
        raw: the whole file.
    Raises:
        Unreadable: of no known format, not UTF-8, nested too deeply, or HTML that the parser rejects.
    """
    file = PurePosixPath(path)
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise Unreadable(f"{file.suffix or 'no suffix'} is none of {', '.join(sorted(_READERS))}")
    try:
        text = decoded(raw)
    except UnicodeDecodeError as error:
        message = f"it is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8, or let an HTML page declare its charset"
        raise Unreadable(message) from error
    if "\x00" in text:
        raise Unreadable("it is not text: it holds a NUL character")
    try:
        title, sections = reader(text)
    except RecursionError as error:
        raise Unreadable("its elements are nested too deeply") from error
    except ParserRejectedMarkup as error:
        # Python's HTML parser fails at a marked section whose keyword it does not know: <![x[…]]>.
        raise Unreadable(f"its HTML cannot be parsed: {' '.join(str(error).split())[-120:]}") from error
    return title[:_TITLE_CHARS] or file.stem.replace("_", " ").replace("-", " "), sections


def _text(text: str) -> Extracted:
    paragraphs = paragraphs_of(text)
    return "", (Section(heading="", paragraphs=paragraphs),) if paragraphs else ()


def _markdown(text: str) -> Extracted:
    text = text.replace("\r\n", "\n")
    title = ""
    front = _FRONT_MATTER.match(text)
    if front is not None:
        named = _FRONT_TITLE.search(front[1])
        title, text = named[1].strip().strip("\"'") if named is not None else "", text[front.end() :]
    outline = _Outline(title)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    row_at = rows_of_markdown(tokens, _plain)
    for index, token in enumerate(tokens):
        if index in row_at:
            outline.add(row_at[index])
        elif token.type == "inline" and tokens[index - 1].type not in ("th_open", "td_open"):
            opened = tokens[index - 1]
            if opened.type == "heading_open":
                outline.heading(int(opened.tag[1:]), _plain(token))
            else:
                outline.add(_plain(token))
        elif token.type in ("fence", "code_block"):
            outline.add_code(token.content)
        elif token.type == "html_block":
            for section in _html(token.content)[1]:
                for paragraph in section.paragraphs:
                    outline.add(paragraph)
    return outline.result()


def _plain(token: Token) -> str:
    """Return an inline token's text: the words of links, the descriptions of images, no marks."""
    parts = []
    for child in token.children or ():
        if child.type in ("text", "code_inline"):
            parts.append(child.content)
        elif child.type == "image":
            parts.append(_plain(child))
        elif child.type in ("softbreak", "hardbreak"):
            parts.append("\n" if child.type == "softbreak" else _HARD_BREAK)
    return joined_lines("".join(parts)).replace(_HARD_BREAK, "\n")


def _html(text: str) -> Extracted:
    soup = BeautifulSoup(text, "html.parser")
    title = clean(soup.title.get_text()).replace("\n", " ") if soup.title is not None else ""
    for dropped in soup.find_all(_DROPPED):
        dropped.decompose()
    outline = _Outline(title)
    for kind, block in _blocks(soup):
        if kind == _CODE:
            outline.add_code(block)
        elif kind:
            outline.heading(kind, block)
        else:
            outline.add(block)
    return outline.result()


def _blocks(root: Tag) -> Iterator[tuple[int, str]]:
    """Yield (heading level, 0 or _CODE; text) of each block, in document order; text between blocks is a block of its own."""
    parts: list[str] = []

    def walk(tag: Tag) -> Iterator[tuple[int, str]]:
        for child in tag.children:
            if isinstance(child, NavigableString):
                # Its subclasses are comments, declarations and the like.
                if type(child) is NavigableString:
                    parts.append(joined_lines(str(child)))
            elif isinstance(child, Tag) and child.name == "pre":
                yield from flush()
                yield _CODE, child.get_text()
            elif isinstance(child, Tag) and child.name == "table" and (rows := rows_of(child)):
                yield from flush()
                yield from ((0, row) for row in rows)
            elif isinstance(child, Tag) and child.name in _HEADINGS:
                yield from flush()
                yield _HEADINGS[child.name], joined_lines(child.get_text(" "))
            elif isinstance(child, Tag) and child.name == "br":
                parts.append("\n")
            elif isinstance(child, Tag) and _BLOCKS.fullmatch(child.name):
                yield from flush()
                yield from walk(child)
                yield from flush()
            elif isinstance(child, Tag):
                yield from walk(child)

    def flush() -> Iterator[tuple[int, str]]:
        text = "".join(parts)
        parts.clear()
        if text.strip():
            yield 0, text

    yield from walk(root)
    yield from flush()


class _Outline:
    """Collects paragraphs under the path of the headings above them."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._path: list[tuple[int, str]] = []
        self._paragraphs: list[str] = []
        self._sections: list[Section] = []

    def heading(self, level: int, text: str) -> None:
        self._close()
        while self._path and self._path[-1][0] >= level:
            self._path.pop()
        heading = clean(text).replace("\n", " ")[:_TITLE_CHARS]
        if not heading:
            return
        self._title = self._title or heading
        self._path.append((level, heading))

    def add(self, text: str) -> None:
        # Within a block of HTML or Markdown a blank line is a matter of the source's layout.
        paragraph = clean(text)
        if paragraph:
            self._paragraphs.append(paragraph.replace("\n\n", "\n"))

    def add_code(self, text: str) -> None:
        code = clean_code(text)
        if code.strip():
            self._paragraphs.append(code)

    def result(self) -> Extracted:
        self._close()
        return self._title, tuple(self._sections)

    def _close(self) -> None:
        if self._paragraphs:
            self._sections.append(Section(heading=" > ".join(heading for _, heading in self._path), paragraphs=tuple(self._paragraphs)))
            self._paragraphs = []


_READERS: dict[str, Callable[[str], Extracted]] = {
    ".txt": _text,
    ".md": _markdown,
    ".markdown": _markdown,
    ".html": _html,
    ".htm": _html,
}
SUFFIXES = frozenset(_READERS)
"""Of the files that are read; all others are passed over."""
