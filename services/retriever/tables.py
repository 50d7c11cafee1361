"""Tables -> one line a row, each cell with its column's name: "fee: late; euros: 2". A cell without its column says nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

_MAX_NAME_CHARS = 80
_MAX_SPANNED_CELLS = 1_000_000
_MAX_NAME_ROWS = 4
_NAMES = " / "
MOST_COMPARED = 50
"""So many rows below a first one are looked at."""
_YEAR = re.compile(r"(?:19|20)\d\d")
_DIGITS = re.compile(r"\d[\d.,]*")
NUMBER = re.compile(r"[-+−]?[\d.,\s]*\d[\d.,\s]*%?")
"""What a cell holds that is no name of a column."""


@dataclass(slots=True, kw_only=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: without line breaks and blanks around it.
        num_columns, num_rows: that it covers.
        is_name: its document says that it names a column (True) or does not (False); None: it does not say.
        is_bold: whether it is set so.
    """

    text: str
    num_columns: int = 1
    num_rows: int = 1
    is_name: bool | None = None
    is_bold: bool = False


@dataclass(frozen=True, slots=True)
class _Place:
    """A cell in one of the places that it covers."""

    cell: Cell
    is_first_column: bool
    is_first_row: bool


_Grid = list[list[_Place | None]]


def named_rows(rows: Iterable[Sequence[str]], *, has_names: bool) -> Iterator[str]:
    """Yield the lines of a table's rows that are not empty; a row of names alone says what the columns are.

    Args:
        rows: cells, without line breaks and blanks around them.
        has_names: whether the first row holds the columns' names.
    """
    names: Sequence[str] | None = None
    num_lines = 0
    for row in rows:
        if has_names and names is None:
            names = row
            continue
        line = _line(names or (), row)
        if line:
            num_lines += 1
            yield line
    if names is not None and not num_lines and (line := _line((), names)):
        yield line


def rows_of_cells(rows: Sequence[Sequence[Cell]]) -> list[str]:
    """Return the lines of a table whose cells may cover several columns and rows, under names of one or several rows.

    A name is the path of the cells above the column, "2024 / euros". What covers several rows is said in each of them; what covers several
    columns, once. Where the document does not say which cells are names, it is guessed: see `_num_name_rows`.

    Args:
        rows: each row's cells from the left, without the places that a cell further up covers.
    """
    grid = _placed(rows)
    num_names = _num_name_rows(grid)
    names = [_name(grid[:num_names], column) for column in range(max(map(len, grid), default=0))]
    body = [_texts(row, names) for row in grid[num_names:]]
    if num_names:
        return list(named_rows([names, *body], has_names=True))
    if _first_column_names(grid):
        return [f"{row[0][:_MAX_NAME_CHARS].rstrip(':： ')}: {'; '.join(filter(None, row[1:]))}" for row in body if any(row)]
    return list(named_rows(body, has_names=False))


def names_columns(first: Sequence[str], below: Sequence[Sequence[str]]) -> bool:
    """Say whether a first row may hold names: it has no number but years, and no cell that, but for its digits, its column has again.

    A column of nothing but years is one of values. First rows of which no cell comes again are taken for names, whatever they are.

    Args:
        first: its cells.
        below: the first rows below it.
    """
    if any(NUMBER.fullmatch(cell) and not _YEAR.fullmatch(cell) for cell in first):
        return False
    # A table that goes on over pages repeats its names.
    others = [row for row in below if list(row) != list(first)]
    for column, cell in enumerate(first):
        values = [row[column] for row in others if column < len(row) and row[column]]
        if _YEAR.fullmatch(cell):
            if values and all(_YEAR.fullmatch(value) for value in values):
                return False
        elif cell and _DIGITS.sub("#", cell) in {_DIGITS.sub("#", value) for value in values}:
            return False
    return True


def num_name_rows(rows: Sequence[Sequence[Cell]]) -> int:
    """Return how many of a table's rows hold names, as `rows_of_cells` takes them."""
    return _num_name_rows(_placed(rows))


def _line(names: Sequence[str], cells: Sequence[str]) -> str:
    named = [f"{name[:_MAX_NAME_CHARS]}: {cell}" if name and cell else cell for name, cell in zip(names, cells, strict=False)]
    return "; ".join(cell for cell in [*named, *cells[len(named) :]] if cell)


def _placed(rows: Sequence[Sequence[Cell]]) -> _Grid:
    grid: _Grid = [[] for _ in rows]
    left = _MAX_SPANNED_CELLS
    for number, row in enumerate(rows):
        column = 0
        for cell in row:
            while column < len(grid[number]) and grid[number][column] is not None:
                column += 1
            num_rows = max(1, min(cell.num_rows, len(rows) - number))
            num_columns = max(1, cell.num_columns)
            if (left := left - num_rows * num_columns) < 0:
                num_rows = num_columns = 1
            for below in range(num_rows):
                line = grid[number + below]
                line.extend([None] * (column + num_columns - len(line)))
                for right in range(num_columns):
                    line[column + right] = _Place(cell, right == 0, below == 0)
            column += num_columns
    return [row for row in grid if any(place is not None and place.cell.text for place in row)]


def _num_name_rows(grid: _Grid) -> int:
    """Return how many rows hold names: those that the document calls so; else the first row if nothing in it is a number or a value that
    comes again below (unless it is bold), and those below it as far as a name above covers several columns."""
    if len(grid) < 2:
        return 0
    said = [place.cell.is_name for row in grid for place in row if place is not None and place.cell.is_name is not None]
    if said:
        count = next((number for number, row in enumerate(grid) if not _all_named(row)), len(grid) - 1)
        return min(count, _MAX_NAME_ROWS, len(grid) - 1)
    if max(map(len, grid)) < 2 or _first_column_names(grid):
        return 0
    if not all(place.cell.is_bold for place in grid[0] if place is not None and place.cell.text):
        texts = [[place.cell.text if _begins(place) else "" for place in row] for row in grid[: 1 + MOST_COMPARED]]
        if not names_columns(texts[0], texts[1:]):
            return 0
    for number, row in enumerate(grid[: min(_MAX_NAME_ROWS, len(grid) - 1)]):
        if not _is_of_names(row, below=number > 0):
            return number
        if not any(place is not None and place.cell.num_columns > 1 and place.cell.num_columns < len(row) for place in row):
            covered = max((place.cell.num_rows for place in row if place is not None and place.is_first_row), default=1)
            return min(number + (covered if number + covered < len(grid) else 1), _MAX_NAME_ROWS)
    return min(_MAX_NAME_ROWS, len(grid) - 1)


def _begins(place: _Place | None) -> TypeGuard[_Place]:
    return place is not None and place.is_first_column and place.is_first_row


def _all_named(row: list[_Place | None]) -> bool:
    filled = [place.cell.is_name for place in row if place is not None and place.cell.text]
    return bool(filled) and all(filled)


def _is_of_names(row: list[_Place | None], *, below: bool) -> bool:
    cells = [place.cell for place in row if place is not None and place.cell.text and place.is_first_column]
    if len(cells) < 2 and not below:
        return False
    numbers = [cell.text for cell in cells if NUMBER.fullmatch(cell.text)]
    # Years name columns; a row of numbers and a text is a row of the table.
    return all(len(number) == 4 and number.isdigit() and number[:2] in ("19", "20") for number in numbers)


def _first_column_names(grid: _Grid) -> bool:
    """Say whether the names stand on the left, "Phone | 123": they end with a colon, or they are bold and nothing beside them is."""
    if any(len(row) < 2 for row in grid):
        return False
    if all(row[0] is not None and row[0].cell.text.endswith((":", "：")) for row in grid):
        return True
    return all(row[0] is not None and row[0].cell.is_bold and row[0].cell.text for row in grid) and not any(
        place.cell.is_bold for row in grid for place in row[1:] if place is not None and place.cell.text
    )


def _name(rows: _Grid, column: int) -> str:
    path: list[str] = []
    for row in rows:
        place = row[column] if column < len(row) else None
        if place is not None and place.cell.text and place.cell.text not in path[-1:]:
            path.append(place.cell.text)
    return _NAMES.join(path)


def _texts(row: list[_Place | None], names: Sequence[str]) -> list[str]:
    texts = [place.cell.text if place is not None and place.is_first_column else "" for place in row]
    return texts + [""] * (len(names) - len(texts))
