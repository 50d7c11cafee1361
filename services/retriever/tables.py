"""Tables -> one line a row, each cell with its column's name: "fee: late; euros: 2". A cell without its column says nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bs4.element import NavigableString, Tag
from markdown_it.token import Token

from services.retriever.core.text import joined_lines

_MAX_NAME_CHARS = 80


def rows_of(table: Tag) -> list[str]:
    """Return the rows of an HTML table; empty when it arranges a page and holds no data: another table, headings or code in it."""
    if table.find(["table", "pre", "h1", "h2", "h3", "h4", "h5", "h6"]) is not None:
        return []
    caption = table.find("caption")
    rows = [row for row in _cells_of(table) if row]
    if not rows:
        return []
    is_header = all(cell.is_name for cell in rows[0]) and len(rows) > 1
    names = [cell.text for cell in rows[0]] if is_header else []
    lines = [_line(names, [cell.text for cell in row]) for row in rows[1 if is_header else 0 :]]
    title = joined_lines(caption.get_text(" ")).strip() if caption is not None else ""
    return [line for line in [title, *lines] if line]


def _cells_of(table: Tag) -> list[list[_Cell]]:
    """Return the cells of each row in the order of the page: a parser nests cells whose ends are left out, as HTML allows."""
    rows: list[list[_Cell]] = []
    for child in table.descendants:
        if isinstance(child, Tag):
            if child.name == "tr":
                rows.append([])
            elif child.name in ("th", "td") and rows:
                rows[-1].append(_Cell(is_name=child.name == "th"))
        elif type(child) is NavigableString and rows and rows[-1]:
            rows[-1][-1].parts.append(str(child))
    return rows


@dataclass(slots=True)
class _Cell:
    is_name: bool
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return joined_lines(" ".join(self.parts)).strip()


def rows_of_markdown(tokens: Sequence[Token], plain: Callable[[Token], str]) -> dict[int, str]:
    """Return the rows of all tables, by the index of the token at which each ends.

    Args:
        tokens: of the whole document.
        plain: gives the text of a cell's inline token.
    """
    found: dict[int, str] = {}
    names: list[str] = []
    cells: list[str] = []
    for index, token in enumerate(tokens):
        if token.type == "table_open":
            names = []
        elif token.type == "tr_open":
            cells = []
        elif token.type in ("th_open", "td_open"):
            cells.append(plain(tokens[index + 1]).strip())
        elif token.type == "thead_close":
            names = cells
        elif token.type == "tr_close" and tokens[index + 1].type != "thead_close":
            line = _line(names, cells)
            if line:
                found[index] = line
        elif token.type == "table_close" and tokens[index - 1].type == "thead_close" and names:
            found[index] = "; ".join(names)
    return found


def _line(names: Sequence[str], cells: Sequence[str]) -> str:
    named = [f"{name[:_MAX_NAME_CHARS]}: {cell}" if name and cell else cell for name, cell in zip(names, cells, strict=False)]
    return "; ".join(cell for cell in [*named, *cells[len(named) :]] if cell)
