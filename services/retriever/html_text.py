"""HTML -> sections. The page is parsed as browsers do, by lexbor; the tree is walked without recursion, however deep it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from selectolax.lexbor import LexborHTMLParser, LexborNode, SelectolaxError

from services.retriever.core.text import clean, joined_lines
from services.retriever.outline import Extracted, Outline, Unreadable
from services.retriever.tables import Cell, named_rows, rows_of_cells

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
# Not text of the page itself.
DROPPED = frozenset(
    ("title", "script", "style", "noscript", "template", "svg", "nav", "header", "footer", "aside", "button", "iframe", "object")
)
_BLOCKS = (
    frozenset(("address", "article", "blockquote", "body", "caption", "dd", "details", "div", "dl", "dt", "fieldset", "figcaption"))
    | frozenset(("figure", "head", "hr", "html", "li", "main", "ol", "p", "section", "summary"))
    | frozenset(("table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul"))
)
_NO_DATA = frozenset(("table", "pre", *_HEADINGS))
# Elements that no other element ends. lexbor looks through all that are open, for each tag: its time grows with the square of the depth.
_NESTING = re.compile(
    r"<(/?)(?:article|aside|blockquote|center|details|div|dl|fieldset|figure|footer|header|main|nav|ol|section|table|ul)[\s/>]",
    re.IGNORECASE,
)
_MAX_DEPTH = 10_000
_MAX_SPAN = 1_000
"""As browsers have it for columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How the words of a page hang together.

    Attributes:
        gap: what stands between the parts of a heading or a cell. In pages of HTML they are often parted by their looks alone.
        has_descriptions: whether the description of an image is text.
    """

    gap: str = " "
    has_descriptions: bool = False


def read_html(text: str, style: Style = Style(), title: str = "") -> Extracted:
    """Return the title and the sections of a page.

    Args:
        text: anything: HTML has no errors.
        style: of the page.
        title: taken from the page where it is empty.
    Raises:
        Unreadable: nested too deeply, or too much text.
        MemoryError: there is too little for the tree.
    """
    if max(accumulate((-1 if slash else 1 for slash in _NESTING.findall(text)), initial=0)) > _MAX_DEPTH:
        raise Unreadable(f"its elements are nested too deeply: more than {_MAX_DEPTH} within each other")
    try:
        tree = LexborHTMLParser(text)
    except SelectolaxError as error:  # HTML has no errors: all that lexbor can lack is memory
        raise MemoryError(str(error)) from error
    outline = Outline(title or _title_of(tree))
    if tree.root is not None:
        _Page(outline, style).read(tree.root)
    return outline.result()


def _title_of(tree: LexborHTMLParser) -> str:
    for node in tree.css("title"):
        if node.parent is None or node.parent.tag != "svg":
            return clean("".join(_texts(node, frozenset()))).replace("\n", " ")
    return ""


class _Page:
    """Moves the blocks of a page into an outline, in document order; text between blocks is a block of its own."""

    def __init__(self, outline: Outline, style: Style) -> None:
        self._outline, self._style = outline, style
        self._parts: list[str] = []

    def read(self, root: LexborNode) -> None:
        opened: list[tuple[LexborNode, bool]] = []
        node: LexborNode | None = root
        while node is not None or opened:
            if node is None:
                node, is_block = opened.pop()
                child = None
            elif (tag := node.tag or "") == "-text":
                self._parts.append(joined_lines(node.text_content or ""))
                node = node.next
                continue
            else:
                child = node.child if self._enters(node, tag) else None
                is_block = tag in _BLOCKS
            if is_block:
                self._flush()
            if child is not None:
                opened.append((node, is_block))
                node = child
            else:
                node = node.next if opened else None
        self._flush()

    def _enters(self, node: LexborNode, tag: str) -> bool:
        """Take what an element says by itself; return whether what is inside is looked at."""
        if tag == "br":
            self._parts.append("\n")
        elif tag == "img" and self._style.has_descriptions:
            self._parts.append(node.attributes.get("alt") or "")
        elif tag == "pre":
            self._flush()
            self._outline.add_code("".join(_texts(node, DROPPED)))
        elif tag in _HEADINGS:
            self._flush()
            self._outline.heading(_HEADINGS[tag], joined_lines(self._style.gap.join(_texts(node, DROPPED, self._style))))
        elif tag == "table" and (rows := _rows_of(node, self._style)):
            self._flush()
            for row in rows:
                self._outline.add(row)
        else:
            return not tag.startswith("-") and tag not in DROPPED
        return False

    def _flush(self) -> None:
        if self._parts:
            text = "".join(self._parts)
            self._parts.clear()
            if not text.isspace():
                self._outline.add(text)


def _nodes(root: LexborNode, dropped: frozenset[str]) -> Iterator[LexborNode]:
    """Yield what is below a node, in document order, without what is dropped."""
    opened: list[LexborNode] = []
    node = root.child
    while node is not None or opened:
        if node is None:
            node = opened.pop().next
            continue
        child = None
        if node.tag not in dropped:
            yield node
            child = node.child
        if child is not None:
            opened.append(node)
        node = child if child is not None else node.next


def _texts(root: LexborNode, dropped: frozenset[str], style: Style = Style()) -> Iterator[str]:
    for node in _nodes(root, dropped):
        if node.tag == "-text":
            yield node.text_content or ""
        elif node.tag == "img" and style.has_descriptions:
            yield node.attributes.get("alt") or ""


@dataclass(slots=True)
class _Cell:
    is_name: bool
    num_columns: int
    num_rows: int
    parts: list[str] = field(default_factory=list)


def _rows_of(table: LexborNode, style: Style) -> list[str]:
    """Return the rows of a table; none when it arranges a page and holds no data: another table, headings or code in it."""
    caption: list[str] = []
    rows: list[list[_Cell]] = []
    for node in _nodes(table, DROPPED):
        tag = node.tag or ""
        if tag in _NO_DATA:
            return []
        if tag == "caption":
            caption.extend(_texts(node, DROPPED))
        elif tag == "tr":
            rows.append([])
        elif tag in ("th", "td") and rows:
            rows[-1].append(_Cell(tag == "th", _span(node, "colspan"), _span(node, "rowspan")))
        elif rows and rows[-1]:
            if tag == "-text":
                rows[-1][-1].parts.append(node.text_content or "")
            elif tag == "img" and style.has_descriptions:
                rows[-1][-1].parts.append(node.attributes.get("alt") or "")
    rows = [row for row in rows if row]
    if not rows:
        return []
    texts = [[joined_lines(style.gap.join(cell.parts)).strip() for cell in row] for row in rows]
    title = joined_lines(" ".join(caption)).strip()
    is_plain = all(cell.num_columns == cell.num_rows == 1 for row in rows for cell in row)
    first = [cell.is_name for cell, text in zip(rows[0], texts[0], strict=True) if text]
    if is_plain and (all(cell.is_name for cell in rows[0]) or not (first and all(first))):
        lines = list(named_rows(texts, has_names=all(cell.is_name for cell in rows[0]) and len(rows) > 1))
    else:
        lines = rows_of_cells([[_placed(*each) for each in zip(*both, strict=True)] for both in zip(rows, texts, strict=True)])
    return [line for line in (title, *lines) if line]


def _placed(cell: _Cell, text: str) -> Cell:
    return Cell(text=text, num_columns=cell.num_columns, num_rows=cell.num_rows, is_name=cell.is_name, is_bold=cell.is_name)


def _span(cell: LexborNode, name: str) -> int:
    """Return how many columns or rows a cell covers; rowspan="0" is all that follow."""
    value = cell.attributes.get(name) or ""
    if name == "rowspan" and value == "0":
        return _MAX_SPAN
    return min(max(int(value), 1), _MAX_SPAN) if value.isdecimal() and len(value) < 9 else 1
