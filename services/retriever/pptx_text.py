"""PowerPoint presentations (.pptx) -> sections: one a slide, "slide 3: Late fees", with its tables, diagrams and the speaker's notes.

Hidden slides are left out, and said: they are not shown either. Text is taken in the order of the slide's shapes, which is the order in
which programs read it aloud.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from services.retriever.core.text import joined_lines
from services.retriever.office_package import Package, PackageLimits, child, local, relation_of, value_of
from services.retriever.outline import Extracted, Outline, Say, Unreadable, numbers_of, unheard
from services.retriever.tables import Cell, rows_of_cells

_SLIDE_LEVEL = 1
# What a slide has from its template, and numbers.
_FURNITURE = frozenset(("dt", "ftr", "hdr", "sldNum", "sldImg"))
_TITLES = ("title", "ctrTitle")
_BREAKS = {"br": "\n"}


def read_pptx(raw: bytes, limits: PackageLimits, say: Say = unheard) -> Extracted:
    """Return the title (of the first slide that has one) and the sections; `say` is told of hidden slides.

    Raises:
        Unreadable: damaged, encrypted, over a limit, too much text, or all slides are hidden.
    """
    package = Package(raw, limits)
    main = package.main_part()
    relations = package.relations(main)
    slides = [relations.get(relation_of(element)) for element in package.children(main, "sldIdLst")]
    outline = Outline("")
    title = ""
    hidden: list[int] = []
    for number, slide in enumerate(slides, start=1):
        if slide is None:
            raise Unreadable(f"it is damaged: slide {number} is missing; open it in the program that wrote it and save it anew")
        root = package.tree(slide.part)
        if root.get("show", "1") in ("0", "false"):
            hidden.append(number)
            continue
        shapes = list(_shapes_of(root))
        name = next((text for shape in shapes if _placeholder(shape) in _TITLES and (text := _one_line(shape))), "")
        title = title or name
        outline.heading(_SLIDE_LEVEL, f"slide {number}: {name}" if name else f"slide {number}", own=name)
        _slide(package, slide.part, shapes, outline)
    if slides and len(hidden) == len(slides):
        raise Unreadable(f"all of its {len(hidden)} slides are hidden: show those that are to be found")
    if hidden:
        which = f"slide {hidden[0]} is" if len(hidden) == 1 else f"slides {numbers_of(hidden)} are"
        say(f"{which} hidden: show what is to be found")
    # The outline would call the whole after its first slide.
    return title, outline.result()[1]


def _shapes_of(root: Element) -> Iterator[Element]:
    """Yield the shapes and frames of a slide in their order, those of groups too."""
    pending = [iter(root)]
    while pending:
        element = next(pending[-1], None)
        if element is None:
            pending.pop()
        elif local(element) in ("sp", "graphicFrame", "cxnSp"):
            yield element
        elif local(element) not in ("Fallback", "extLst"):
            pending.append(iter(element))


def _placeholder(shape: Element) -> str:
    """Return what a shape is a place for; empty when it is none."""
    for element in shape:
        place = child(element, "nvPr", "ph")
        if place is not None:
            return place.get("type", "obj")
    return ""


def _is_hidden(shape: Element) -> bool:
    return any(local(below) == "cNvPr" and below.get("hidden", "0") in ("1", "true") for element in shape for below in element)


def _one_line(shape: Element) -> str:
    return joined_lines(" ".join(_paragraphs(shape))).strip()


def _paragraphs(root: Element) -> Iterator[str]:
    for paragraph in root.iter():
        if local(paragraph) == "p":
            parts = (element.text or "" if local(element) == "t" else _BREAKS.get(local(element), "") for element in paragraph.iter())
            yield "".join(parts)


def _slide(package: Package, part: str, shapes: list[Element], outline: Outline) -> None:
    relations = package.relations(part)
    for shape in shapes:
        if _placeholder(shape) in (*_FURNITURE, *_TITLES) or _is_hidden(shape):
            continue
        table = next((element for element in shape.iter() if local(element) == "tbl"), None)
        diagram = next((element for element in shape.iter() if local(element) == "relIds"), None)
        if table is not None:
            for line in rows_of_cells(_cells_of(table)):
                outline.add(line)
        elif diagram is not None:
            data = relations.get(value_of(diagram, "dm") or "")
            if data is not None and data.part in package:
                for text in _paragraphs(package.tree(data.part)):
                    outline.add(text)
        else:
            for text in _paragraphs(shape):
                outline.add(text)
    for relation in relations.values():
        if relation.kind == "notesSlide" and relation.part in package:
            _notes(package.tree(relation.part), outline)


def _notes(root: Element, outline: Outline) -> None:
    texts = [text for shape in _shapes_of(root) if _placeholder(shape) not in _FURNITURE for text in _paragraphs(shape) if text.strip()]
    for number, text in enumerate(texts):
        outline.add(text if number else f"Speaker notes: {text}")


def _cells_of(table: Element) -> list[list[Cell]]:
    properties = child(table, "tblPr")
    names_first = properties is not None and properties.get("firstRow", "0") in ("1", "true")
    rows: list[list[Cell]] = []
    for row in table:
        if local(row) != "tr":
            continue
        rows.append([])
        for cell in row:
            # Cells that another covers are there too, marked.
            if local(cell) != "tc" or any(cell.get(covered, "0") in ("1", "true") for covered in ("hMerge", "vMerge")):
                continue
            rows[-1].append(
                Cell(
                    text=_one_line(cell),
                    num_columns=_number(cell.get("gridSpan")),
                    num_rows=_number(cell.get("rowSpan")),
                    is_bold=_is_bold(cell),
                )
            )
    if names_first and len(rows) > 1:
        # Every new table says so; a second row of names is seen by what covers the columns.
        for first in rows[0]:
            first.is_bold = True
    return rows


def _number(value: str | None) -> int:
    return max(1, int(value)) if value is not None and value.isdecimal() and len(value) < 5 else 1


def _is_bold(cell: Element) -> bool:
    runs = [run for run in cell.iter() if local(run) == "r" and "".join(_texts(run)).strip()]
    return bool(runs) and all((properties := child(run, "rPr")) is not None and properties.get("b", "0") in ("1", "true") for run in runs)


def _texts(run: Element) -> Iterator[str]:
    yield from (element.text or "" for element in run if local(element) == "t")
