"""The words of a page -> lines and pieces of lines, tables that no rules enclose, columns of text that were written across. Pure.

Words stay in the order in which they were written: programs write a column of text after the other, and a table row by row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from services.retriever.pdf_page import Box, Word
from services.retriever.pdf_tables import text_of
from services.retriever.tables import Cell

_PIECE_GAP = 1.1
"""What parts two pieces of a line, in heights of its words; a blank is a quarter, in justified text up to one."""
_MIN_ROWS = 3
"""Of a table without rules. Two lines that happen to have a gap are none."""
_TEXT_CHARS = 28
"""Pieces that are longer on average are lines of a column of text, and not cells."""
_MARKER = re.compile(r"[•‣◦▪●○■□–—*\-·]|\(?(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{1,5})[.)]")


@dataclass(frozen=True, slots=True)
class Piece:
    """Words of one line that stand together, and what they take."""

    words: tuple[Word, ...]
    box: Box

    @property
    def text(self) -> str:
        """The words."""
        return text_of(self.words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of text, and what it takes; `pieces` are parted by wide gaps."""

    pieces: tuple[Piece, ...]
    box: Box
    text: str
    is_bold: bool


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells. `edges`: where its columns begin; a table that goes on has the same ones on the next page."""

    rows: list[list[Cell]]
    edges: tuple[float, ...]


Block = Line | Table


def lines_of(words: Iterable[Word]) -> Iterator[Line]:
    """Yield the lines of a page, in the order in which they were written."""
    pieces: list[list[Word]] = []
    for word in words:
        last = pieces[-1][-1] if pieces else None
        if last is None or not _is_beside(last, word):
            if pieces:
                yield _line(pieces)
            pieces = [[word]]
        elif word.box.left - last.box.right > _PIECE_GAP * max(last.box.height, word.box.height):
            pieces.append([word])
        else:
            pieces[-1].append(word)
    if pieces:
        yield _line(pieces)


def _is_beside(last: Word, word: Word) -> bool:
    overlap = min(last.box.top, word.box.top) - max(last.box.bottom, word.box.bottom)
    return overlap > 0.4 * min(last.box.height, word.box.height) and word.box.left > last.box.left


def _line(pieces: list[list[Word]]) -> Line:
    joined: list[list[Word]] = []
    for piece in pieces:
        if len(joined) == 1 and _MARKER.fullmatch(text_of(joined[0])):  # what a bullet or a number stands before
            joined[0].extend(piece)
        else:
            joined.append(piece)
    return _line_of([Piece(tuple(piece), _around([word.box for word in piece])) for piece in joined])


def _line_of(pieces: list[Piece]) -> Line:
    words = [word for piece in pieces for word in piece.words]
    box = pieces[0].box if len(pieces) == 1 else _around([piece.box for piece in pieces])
    return Line(pieces=tuple(pieces), box=box, text=text_of(words), is_bold=all(word.is_bold for word in words))


def turned_line(words: Sequence[Word]) -> Line:
    """Return words that are turned, as a label beside a drawing is, as one line without a place or a size."""
    nowhere = Box(0.0, 0.0, 0.0, 0.0)
    return Line(pieces=(Piece(tuple(words), nowhere),), box=nowhere, text=text_of(words), is_bold=False)


def _around(boxes: Sequence[Box]) -> Box:
    return Box(
        min([box.left for box in boxes]),
        min([box.bottom for box in boxes]),
        max([box.right for box in boxes]),
        max([box.top for box in boxes]),
    )


def arranged(lines: Sequence[Line]) -> list[Block]:
    """Return the lines with runs of those that have several pieces made a table, or columns read one after the other."""
    blocks: list[Block] = []
    position = 0
    while position < len(lines):
        run = _run(lines, position)
        if run is None:
            blocks.append(lines[position])
            position += 1
            continue
        columns, end = run
        blocks.extend(_of_run(lines[position:end], columns))
        position = end
    return blocks


_Columns = list[tuple[float, float]]


def _run(lines: Sequence[Line], start: int) -> tuple[_Columns, int] | None:
    """Return the columns of the table that begins at a line, and where it ends."""
    if len(lines[start].pieces) < 2:
        return None
    columns: _Columns = []
    end, num_rows = start, 0
    while end < len(lines):
        line = lines[end]
        if end > start and not _follows(lines[end - 1], line):
            break
        wider = _with(columns, line) if len(line.pieces) > 1 or num_rows else None
        if wider is None or (len(line.pieces) == 1 and _column_at(wider, line.pieces[0]) == 0):
            break
        columns, end, num_rows = wider, end + 1, num_rows + (len(line.pieces) > 1)
    return (columns, end) if num_rows >= _MIN_ROWS else None


def _follows(above: Line, below: Line) -> bool:
    gap = above.box.bottom - below.box.top
    return -0.6 * below.box.height < gap < 1.6 * below.box.height


def _with(columns: _Columns, line: Line) -> _Columns | None:
    """Return the columns widened by a line's pieces; None when a piece would join two of them, or two pieces fall into one."""
    found = list(columns)
    taken: set[tuple[float, float]] = set()
    for piece in line.pieces:
        box = piece.box
        over = [column for column in found if column[0] < box.right and box.left < column[1]]
        if len(over) > 1:
            return None
        wider = (min(box.left, *(column[0] for column in over)), max(box.right, *(column[1] for column in over))) if over else None
        if over and over[0] in taken:
            return None
        for column in over:
            found.remove(column)
        column = wider if wider is not None else (box.left, box.right)
        taken.add(column)
        found.append(column)
    return sorted(found)


def _column_at(columns: _Columns, piece: Piece) -> int:
    return next(number for number, column in enumerate(columns) if column[0] <= piece.box.left <= column[1])


def _of_run(lines: Sequence[Line], columns: _Columns) -> list[Block]:
    pieces = [piece for line in lines for piece in line.pieces]
    if len(columns) <= 3 and sum(len(piece.text) for piece in pieces) > _TEXT_CHARS * len(pieces):
        ordered = sorted(pieces, key=lambda piece: (_column_at(columns, piece), -piece.box.top))
        return [_line_of([piece]) for piece in ordered]
    rows: list[list[list[Word]]] = []
    for line in lines:
        row: list[list[Word]] = [[] for _ in columns]
        for piece in line.pieces:
            row[_column_at(columns, piece)].extend(piece.words)
        if len(line.pieces) == 1 and rows:  # the rest of a cell above
            for cell, more in zip(rows[-1], row, strict=True):
                cell.extend(more)
        else:
            rows.append(row)
    cells = [[Cell(text=text_of(cell), is_bold=bool(cell) and all(word.is_bold for word in cell)) for cell in row] for row in rows]
    return [Table(cells, tuple(column[0] for column in columns))]
