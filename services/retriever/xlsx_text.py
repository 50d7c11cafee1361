"""Excel workbooks (.xlsx) -> sections: one a sheet, each row a line whose cells have their columns' names, as the cells show them.

A sheet may hold several tables, parted by empty rows or columns, each below lines that say what it is. Formulas are read by the values that
were saved with them. Hidden sheets, rows and columns are left out; sheets are said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from services.retriever.core.text import joined_lines
from services.retriever.number_format import GENERAL, format_of, shown
from services.retriever.office_package import Package, PackageLimits, child, local, relation_of
from services.retriever.outline import MAX_TEXT_CHARS, Extracted, Outline, Say, Unreadable, unheard
from services.retriever.tables import Cell, rows_of_cells

_SHEET_LEVEL = 1
_MAX_CELLS = 2_000_000
"""Of one sheet, that are not empty."""
_REFERENCE = re.compile(r"\$?([A-Z]{1,3})\$?(\d{1,7})")
_MAX_COLUMN = 16_384
_MAX_MERGED_ROWS = 1_000
_MAX_NAMES = 10
_MAX_NAME_CHARS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class _Formats:
    """How numbers are shown: by the style number of a cell."""

    codes: tuple[str, ...]
    is_bold: tuple[bool, ...]
    from_1904: bool


@dataclass(slots=True)
class _Sheet:
    """The cells of a sheet that are not empty, by row and column (from 0), and the areas that are one cell."""

    rows: dict[int, dict[int, Cell]] = field(default_factory=dict)
    merged: list[tuple[int, int, int, int]] = field(default_factory=list)
    num_without_value: int = 0
    """Formulas whose values were not saved."""


def read_xlsx(raw: bytes, limits: PackageLimits, say: Say = unheard) -> Extracted:
    """Return no title (the file's name is one) and the sections; `say` is told of hidden sheets and of formulas without values.

    Raises:
        Unreadable: damaged, encrypted, over a limit, too much text, all sheets are hidden, or no formula has its value.
    """
    package = Package(raw, limits)
    main = package.main_part()
    relations = package.relations(main)
    parts = {relation.kind: relation.part for relation in relations.values()}
    from_1904 = any(element.get("date1904", "0") in ("1", "true") for element in package.tree(main) if local(element) == "workbookPr")
    formats = _formats_of(package, parts.get("styles", ""), from_1904=from_1904)
    strings = _strings_of(package, parts.get("sharedStrings", ""))
    outline = Outline("")
    num_without_value = num_sheets = 0
    hidden: list[str] = []
    for element in package.children(main, "sheets"):
        sheet = relations.get(relation_of(element))
        if sheet is None or sheet.kind != "worksheet":
            continue  # a sheet that is a chart of another's cells
        num_sheets += 1
        if element.get("state", "visible") != "visible":
            hidden.append(element.get("name", ""))
            continue
        cells = _sheet_of(package, sheet.part, strings, formats)
        num_without_value += cells.num_without_value
        outline.heading(_SHEET_LEVEL, element.get("name", ""), own="")
        for block in _blocks_of(cells):
            _table(block, outline)
    sections = outline.result()[1]
    if not sections and len(hidden) == num_sheets > 0:
        raise Unreadable(f"all of its {len(hidden)} sheets are hidden: show those that are to be found")
    if not sections and num_without_value:
        raise Unreadable(f"its {num_without_value} formulas have no saved values: open it in Excel or LibreOffice and save it")
    if hidden:
        names = ", ".join(joined_lines(name)[:_MAX_NAME_CHARS] for name in hidden[:_MAX_NAMES])
        which = f"sheet {names} is" if len(hidden) == 1 else f"sheets {names}{', …' if len(hidden) > _MAX_NAMES else ''} are"
        say(f"{which} hidden: show what is to be found")
    if num_without_value:
        say(f"{num_without_value} formulas have no saved values: open it in Excel or LibreOffice and save it")
    return "", sections


def _strings_of(package: Package, part: str) -> list[str]:
    if part not in package:
        return []
    strings: list[str] = []
    num_chars = 0
    for element in package.children(part, "sst"):
        strings.append(_text_of(element))
        num_chars += len(strings[-1])
        if num_chars > MAX_TEXT_CHARS:
            raise Unreadable(f"it holds more than {MAX_TEXT_CHARS // 2**20} Mi characters of text; split it")
    return strings


def _text_of(element: Element) -> str:
    """Return the text of a string, whose parts may have fonts of their own; how it is pronounced is no part of it."""
    parts: list[str] = []
    for below in element:
        if local(below) == "t":
            parts.append(below.text or "")
        elif local(below) == "r":
            parts.extend(text.text or "" for text in below if local(text) == "t")
    return joined_lines("".join(parts)).strip()


def _formats_of(package: Package, part: str, *, from_1904: bool) -> _Formats:
    if part not in package:
        return _Formats(codes=(), is_bold=(), from_1904=from_1904)
    own: dict[int, str] = {}
    bold: list[bool] = []
    codes: list[str] = []
    is_bold: list[bool] = []
    styles = {local(element): element for element in package.tree(part)}
    for element in styles.get("numFmts", ()):
        own[_number(element.get("numFmtId"))] = element.get("formatCode", GENERAL)
    for element in styles.get("fonts", ()):
        switch = child(element, "b")
        bold.append(switch is not None and switch.get("val", "1") not in ("0", "false"))
    for element in styles.get("cellXfs", ()):
        codes.append(format_of(_number(element.get("numFmtId")), own))
        font = _number(element.get("fontId"))
        is_bold.append(font < len(bold) and bold[font])
    return _Formats(codes=tuple(codes), is_bold=tuple(is_bold), from_1904=from_1904)


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() and len(text) < 10 else 0


def _sheet_of(package: Package, part: str, strings: list[str], formats: _Formats) -> _Sheet:
    sheet = _Sheet()
    hidden: set[int] = set()
    num_cells = row_number = 0
    for element in package.children(part, "cols", "sheetData", "mergeCells"):
        match local(element):
            case "col" if _is_hidden(element):
                hidden.update(range(_number(element.get("min")) - 1, min(_number(element.get("max")), _MAX_COLUMN)))
            case "row":
                row_number = _number(element.get("r")) or row_number + 1
                cells = {} if _is_hidden(element) else _row(element, strings, formats, sheet)
                cells = {column: cell for column, cell in cells.items() if column not in hidden}
                if cells:
                    sheet.rows[row_number - 1] = cells
                num_cells += len(cells)
                if num_cells > _MAX_CELLS:
                    raise Unreadable(f"a sheet of it has more than {_MAX_CELLS} cells; split it")
            case "mergeCell":
                corners = _REFERENCE.findall(element.get("ref", ""))
                if len(corners) == 2:
                    (left, top), (right, bottom) = corners
                    sheet.merged.append((int(top) - 1, _column(left), int(bottom) - 1, _column(right)))
    return sheet


def _is_hidden(element: Element) -> bool:
    return element.get("hidden", "0") in ("1", "true")


def _row(row: Element, strings: list[str], formats: _Formats, sheet: _Sheet) -> dict[int, Cell]:
    cells: dict[int, Cell] = {}
    column = -1
    for element in row:
        place = _REFERENCE.fullmatch(element.get("r", ""))
        column = _column(place[1]) if place is not None else column + 1
        cell = _cell(element, strings, formats, sheet)
        if cell is not None and column < _MAX_COLUMN:
            cells[column] = cell
    return cells


def _column(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - 64
    return number - 1


def _cell(element: Element, strings: list[str], formats: _Formats, sheet: _Sheet) -> Cell | None:
    value = formula = None
    text = ""
    for below in element:
        match local(below):
            case "v":
                value = below.text
            case "f":
                formula = below
            case "is":
                text = _text_of(below)
    style = _number(element.get("s"))
    match element.get("t", "n"):
        case "s":
            index = _number(value)
            text = strings[index] if value is not None and index < len(strings) else ""
        case "b":
            text = {"1": "TRUE", "0": "FALSE"}.get(value or "", "")
        case "str" | "d" | "e":
            text = joined_lines(value or "").strip().removesuffix("T00:00:00")
        case "n":
            code = formats.codes[style] if style < len(formats.codes) else GENERAL
            text = shown(value, code, from_1904=formats.from_1904) if value else ""
    if not text:
        sheet.num_without_value += formula is not None and not value
        return None
    return Cell(text=text, is_bold=style < len(formats.is_bold) and formats.is_bold[style])


_Block = list[dict[int, Cell]]


def _blocks_of(sheet: _Sheet) -> Iterator[_Block]:
    """Yield the tables of a sheet: runs of rows, and in them runs of columns, without an empty one. Merged areas are applied."""
    for top, left, bottom, right in sheet.merged:
        cell = sheet.rows.get(top, {}).get(left)
        if cell is not None and bottom >= top and right >= left:
            cell.num_rows, cell.num_columns = min(bottom - top + 1, _MAX_MERGED_ROWS), min(right, _MAX_COLUMN) - left + 1
    run: list[dict[int, Cell]] = []
    last = covered = -1
    for number in sorted(sheet.rows):
        if run and number > max(last, covered) + 1:
            yield from _beside(run)
            run = []
        elif run:
            run.extend({} for _ in range(last + 1, number))
        run.append(sheet.rows[number])
        last = number
        covered = max(covered, *(number + cell.num_rows - 1 for cell in sheet.rows[number].values()))
    if run:
        yield from _beside(run)


def _beside(rows: _Block) -> Iterator[_Block]:
    used: set[int] = set()
    for row in rows:
        for column, cell in row.items():
            used.update(range(column, column + min(cell.num_columns, _MAX_COLUMN)))
    start = None
    columns = sorted(used)
    for column, following in zip(columns, [*columns[1:], None], strict=True):
        start = column if start is None else start
        if following != column + 1:
            yield [{number - start: cell for number, cell in row.items() if start <= number <= column} for row in rows]
            start = None


def _table(block: _Block, outline: Outline) -> None:
    width = _width(block)
    first = 0
    # What stands alone above a table says what it is about.
    while width > 1 and first < len(block) - 1 and len(block[first]) <= 1:
        for cell in block[first].values():
            outline.add(cell.text)
        first += 1
    for line in rows_of_cells(_laid_out(block[first:])):
        outline.add(line)


def _width(block: _Block) -> int:
    return max((column for row in block for column in row), default=-1) + 1


def _laid_out(block: _Block) -> list[list[Cell]]:
    """Return each row's cells from the left, with empty ones where nothing is and none where a cell covers the place."""
    covered: set[tuple[int, int]] = set()
    rows: list[list[Cell]] = []
    width = _width(block)
    for number, row in enumerate(block):
        cells: list[Cell] = []
        column = 0
        while column < width:
            cell = row.get(column)
            if (number, column) in covered:
                column += 1
                continue
            cell = cell if cell is not None else Cell(text="")
            cells.append(cell)
            covered.update(
                (below, right)
                for below in range(number + 1, min(number + cell.num_rows, len(block)))
                for right in range(column, min(column + cell.num_columns, width))
            )
            column += cell.num_columns
        rows.append(cells)
    return rows
