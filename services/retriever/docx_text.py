"""Word documents (.docx) -> sections: headings by their styles, tables in their place, notes after the paragraph that refers to them.

What Word does not show is no text: deleted passages of tracked changes, hidden words, fields' codes, comments. Page headers and footers are
left out. The XML is walked, since python-docx leaves out what is wrapped (findings/python_docx_leaves_out_insertions.sh).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from services.retriever.core.text import joined_lines
from services.retriever.office_package import Package, PackageLimits, child, is_on, local, value_of
from services.retriever.outline import Extracted, Outline, Say, unheard
from services.retriever.tables import Cell, rows_of_cells

_TITLE_LEVEL = 0
# Not shown, or shown by another element beside it: `Fallback` repeats what is in `Choice` for programs of before 2010.
_SKIPPED = frozenset(
    ("del", "moveFrom", "pPr", "rPr", "sdtPr", "sdtEndPr", "Fallback", "instrText", "delText", "rt", "annotation", "comment")
)
_SIGNS = {"tab": " ", "ptab": " ", "br": "\n", "cr": "\n", "noBreakHyphen": "-", "softHyphen": ""}
_NOTES = {"footnoteReference": "footnotes", "endnoteReference": "endnotes"}
_NO_STYLE_LEVEL = 9
"""What `outlineLvl` says of body text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Style:
    name: str
    based_on: str
    outline: int | None
    is_bold: bool
    is_hidden: bool


@dataclass(slots=True)
class _Paragraph:
    """What one paragraph says. `notes`: what its references point at; `boxes`: text boxes that hang on it."""

    parts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    boxes: list[Element] = field(default_factory=list)
    num_bold: int = 0
    num_plain: int = 0


def read_docx(raw: bytes, limits: PackageLimits, _: Say = unheard) -> Extracted:
    """Return the title (a paragraph of the style Title, or the first heading) and the sections.

    Raises:
        Unreadable: damaged, encrypted, over a limit, or too much text.
    """
    package = Package(raw, limits)
    main = package.main_part()
    parts = {relation.kind: relation.part for relation in package.relations(main).values()}
    reader = _Reader(_styles_of(package, parts.get("styles", "")), _notes_of(package, parts))
    for block in package.children(main, "body"):
        reader.block(block)
    return reader.outline.result()


def _styles_of(package: Package, part: str) -> dict[str, _Style]:
    if part not in package:
        return {}
    styles: dict[str, _Style] = {}
    for element in package.children(part, "styles"):
        if local(element) != "style":
            continue
        name, based_on = child(element, "name"), child(element, "basedOn")
        styles[value_of(element, "styleId") or ""] = _Style(
            name=(value_of(name, "val") or "").lower() if name is not None else "",
            based_on=(value_of(based_on, "val") or "") if based_on is not None else "",
            outline=_outline_of(child(element, "pPr")),
            is_bold=is_on(child(element, "rPr", "b")),
            is_hidden=is_on(child(element, "rPr", "vanish")),
        )
    return styles


def _outline_of(properties: Element | None) -> int | None:
    level = child(properties, "outlineLvl")
    value = value_of(level, "val") if level is not None else None
    return int(value) if value is not None and value.isdecimal() else None


def _notes_of(package: Package, parts: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Return the notes' texts by kind and id."""
    notes: dict[tuple[str, str], str] = {}
    for reference, kind in _NOTES.items():
        if parts.get(kind, "") not in package:
            continue
        for note in package.children(parts[kind], kind):
            # The lines that part notes from the text are notes, too, with a type.
            if (value_of(note, "type") or "normal") == "normal":
                text = " ".join("".join(_read_paragraph(element, {}).parts) for element in note.iter() if local(element) == "p")
                notes[reference, value_of(note, "id") or ""] = joined_lines(text).strip()
    return notes


class _Reader:
    """Moves the blocks of a body into an outline."""

    def __init__(self, styles: Mapping[str, _Style], notes: Mapping[tuple[str, str], str]) -> None:
        self.outline = Outline("")
        self._styles, self._notes = styles, notes

    def block(self, element: Element) -> None:
        """Take a paragraph, a table, or what wraps some of them."""
        name = local(element)
        if name == "p":
            self._paragraph(element)
        elif name == "tbl":
            self._table(element)
        elif name not in _SKIPPED:
            for below in element:
                self.block(below)

    def _paragraph(self, element: Element) -> None:
        paragraph = _read_paragraph(element, self._notes)
        text = "".join(paragraph.parts)
        level = self._level_of(child(element, "pPr"))
        if level is not None and text.strip():
            self.outline.heading(level, joined_lines(text))
        else:
            self.outline.add(text)
        for note in paragraph.notes:
            self.outline.add(f"Note: {note}")
        for box in paragraph.boxes:
            self.block(box)

    def _level_of(self, properties: Element | None) -> int | None:
        """Return the level of a heading; None for other paragraphs."""
        said = _outline_of(properties)
        style = child(properties, "pStyle")
        name = value_of(style, "val") if style is not None else None
        for _ in range(len(self._styles)):
            found = self._styles.get(name or "")
            if found is None:
                break
            if found.name == "title":
                return _TITLE_LEVEL
            # Word knows its own headings by these names, in every language.
            if said is None and found.name.startswith("heading ") and found.name[8:].isdecimal():
                said = int(found.name[8:]) - 1
            said = found.outline if said is None else said
            name = found.based_on
        return said + 1 if said is not None and said < _NO_STYLE_LEVEL else None

    def _table(self, table: Element) -> None:
        rows = [(row, list(_direct(row, "tc"))) for row in _direct(table, "tr")]
        if all(len(cells) <= 1 for _, cells in rows) or any(self._is_layout(cell) for _, cells in rows for cell in cells):
            for _, cells in rows:
                for cell in cells:
                    for below in cell:
                        self.block(below)
            return
        notes: list[str] = []
        for line in rows_of_cells(_joined_below([self._cells(row, cells, notes) for row, cells in rows])):
            self.outline.add(line)
        for note in notes:
            self.outline.add(f"Note: {note}")

    def _is_layout(self, cell: Element) -> bool:
        """Say whether a cell holds a part of a page: a heading, or a table."""
        return any(
            local(element) == "tbl" or (local(element) == "p" and self._level_of(child(element, "pPr")) is not None)
            for element in cell.iter()
        )

    def _cells(self, row: Element, cells: list[Element], notes: list[str]) -> list[tuple[Cell, bool]]:
        """Return a row's cells, each with whether it goes on below the one above."""
        is_name = True if is_on(child(row, "trPr", "tblHeader")) else None
        before = child(row, "trPr", "gridBefore")
        found = [(Cell(text="", num_columns=_count(before)), False)] if before is not None else []
        for cell in cells:
            properties = child(cell, "tcPr")
            span, merged = child(properties, "gridSpan"), child(properties, "vMerge")
            said = [_read_paragraph(element, self._notes) for element in cell.iter() if local(element) == "p"]
            notes.extend(note for paragraph in said for note in paragraph.notes)
            text = joined_lines(" ".join("".join(paragraph.parts) for paragraph in said)).strip()
            is_bold = bool(text) and not any(paragraph.num_plain for paragraph in said)
            goes_on = merged is not None and (value_of(merged, "val") or "continue") == "continue"
            found.append((Cell(text=text, num_columns=_count(span), is_name=is_name, is_bold=is_bold), goes_on))
        return found


def _count(element: Element | None) -> int:
    value = value_of(element, "val") if element is not None else None
    return max(1, int(value)) if value is not None and value.isdecimal() and len(value) < 5 else 1


def _direct(parent: Element, name: str) -> Iterator[Element]:
    """Yield a table's rows, or a row's cells; content controls and tracked changes may wrap them."""
    for element in parent:
        if local(element) == name:
            yield element
        elif local(element) in ("sdt", "sdtContent", "customXml", "ins", "moveTo"):
            yield from _direct(element, name)


def _joined_below(rows: list[list[tuple[Cell, bool]]]) -> list[list[Cell]]:
    """Return the rows without the cells that only go on: the one above them covers their rows."""
    above: dict[int, Cell] = {}
    joined: list[list[Cell]] = []
    for row in rows:
        column, kept, current = 0, [], dict[int, Cell]()
        for cell, goes_on in row:
            if goes_on and column in above:
                current[column] = above[column]
                current[column].num_rows += 1
            else:
                current[column] = cell
                kept.append(cell)
            column += cell.num_columns
        above = current
        joined.append(kept)
    return joined


def _read_paragraph(paragraph: Element, notes: Mapping[tuple[str, str], str]) -> _Paragraph:
    found = _Paragraph()
    pending: list[Iterable[Element]] = [iter(paragraph)]
    is_bold = False
    while pending:
        element = next(iter(pending[-1]), None)
        if element is None:
            pending.pop()
            continue
        name = local(element)
        if name == "t":
            text = element.text or ""
            found.parts.append(text)
            found.num_bold += len(text.strip()) if is_bold else 0
            found.num_plain += 0 if is_bold else len(text.strip())
        elif name in _SIGNS:
            found.parts.append(_SIGNS[name])
        elif name in _NOTES:
            note = notes.get((name, value_of(element, "id") or ""))
            found.notes.extend((note,) if note else ())
        elif name == "txbxContent":
            found.boxes.append(element)
        elif name == "r":
            properties = child(element, "rPr")
            if not is_on(child(properties, "vanish")):
                is_bold = is_on(child(properties, "b"))
                pending.append(iter(element))
        elif name not in _SKIPPED:
            pending.append(iter(element))
    return found
