"""A page of a PDF, as PDFium sees it: its words with their boxes, in the order in which they were written, and the lines drawn on it.

Coordinates are points (1/72 inch) of the page as most of its words are read: x to the right, y upwards.
"""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import pypdfium2 as pdfium
from pypdfium2 import raw as c

BROKEN_WORD = "\x02"
"""PDFium's sign for a hyphen at the end of a line."""

_MAX_SEGMENTS = 20_000
"""Of the lines on one page; a page with more is a drawing."""
_MAX_SLANT_PT = 0.5
_BOLD_WEIGHT = 600
_BOLD_NAMES = (b"bold", b"black", b"heavy")


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle; also a line, when it has no height or no width."""

    left: float
    bottom: float
    right: float
    top: float

    @property
    def height(self) -> float:
        """Of a word: what its font takes, whatever its letters are."""
        return self.top - self.bottom

    @property
    def width(self) -> float:
        """At least 0."""
        return self.right - self.left

    def holds(self, other: Box) -> bool:
        """Say whether the middle of another box is inside."""
        x, y = (other.left + other.right) / 2, (other.bottom + other.top) / 2
        return self.left <= x <= self.right and self.bottom <= y <= self.top


@dataclass(frozen=True, slots=True)
class Word:
    """What stands between blanks. `is_upright`: as most words of its page are."""

    text: str
    box: Box
    is_bold: bool
    is_upright: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What can be read of one page. `has_picture`: whether there is an image on it."""

    words: list[Word]
    rules: list[Box]
    height: float
    has_picture: bool


def read_page(page: pdfium.PdfPage) -> Page:
    """Return the page's words and lines, turned so that most words are upright, whatever way the page is shown.

    Raises:
        pdfium.PdfiumError: it is damaged.
    """
    width, height = page.get_size()
    if page.get_rotation() in (90, 270):  # the size is as shown
        width, height = height, width
    found = _found_on(page)
    quarters = Counter(word.quarter for word in found).most_common(1)
    quarter = quarters[0][0] if quarters else 0
    shown = (360 - 90 * quarter) % 360
    if shown != page.get_rotation():
        page.set_rotation(shown)  # PDFium puts lines into their order as the page is shown
        found = _found_on(page)
    turn = _turned(quarter, width, height)
    words = [Word(word.text, turn(word.box), word.is_bold, word.quarter == quarter) for word in found]
    rules, has_picture = _drawn(page, turn)
    return Page(words=words, rules=rules, height=width if quarter % 2 else height, has_picture=has_picture)


def _found_on(page: pdfium.PdfPage) -> list[_Found]:
    text = page.get_textpage()
    try:
        return list(_words_of(text.raw))
    finally:
        text.close()


_Turn = Callable[[Box], Box]


def _turned(quarter: int, width: float, height: float) -> _Turn:
    """Return what turns a box with a page of this size by so many quarters, against the clock."""

    def turn(box: Box) -> Box:
        match quarter:
            case 1:
                return Box(height - box.top, box.left, height - box.bottom, box.right)
            case 2:
                return Box(width - box.right, height - box.top, width - box.left, height - box.bottom)
            case 3:
                return Box(box.bottom, width - box.right, box.top, width - box.left)
            case _:
                return box

    return turn


@dataclass(frozen=True, slots=True)
class _Found:
    """A word in the page's own coordinates. `quarter`: how many quarters it is turned with the clock."""

    text: str
    box: Box
    is_bold: bool
    quarter: int


def _words_of(text: ctypes.c_void_p) -> Iterator[_Found]:
    letters: list[str] = []
    first = 0
    for number in range(c.FPDFText_CountChars(text)):
        code = c.FPDFText_GetUnicode(text, number)
        letter = chr(code) if 0 < code < 0x110000 and not 0xD800 <= code < 0xE000 else "\ufffd"
        if letter.isspace():
            if letters:
                yield _word(text, letters, first, number - 1)
                letters = []
            continue
        if not letters:
            first = number
        letters.append(letter)
        if letter == BROKEN_WORD:  # the rest of the word follows at once, on the next line
            yield _word(text, letters, first, number)
            letters = []
    if letters:
        yield _word(text, letters, first, first + len(letters) - 1)


def _word(text: ctypes.c_void_p, letters: list[str], first: int, last: int) -> _Found:
    begin, end = _letter(text, first), _letter(text, last)
    box = Box(min(begin.left, end.left), min(begin.bottom, end.bottom), max(begin.right, end.right), max(begin.top, end.top))
    quarter = round(c.FPDFText_GetCharAngle(text, first) / (math.pi / 2)) % 4
    return _Found("".join(letters), box, _is_bold(text, first), quarter)


def _letter(text: ctypes.c_void_p, number: int) -> Box:
    rect = c.FS_RECTF()
    c.FPDFText_GetLooseCharBox(text, number, rect)
    return Box(min(rect.left, rect.right), min(rect.bottom, rect.top), max(rect.left, rect.right), max(rect.bottom, rect.top))


def _is_bold(text: ctypes.c_void_p, number: int) -> bool:
    if c.FPDFText_GetFontWeight(text, number) >= _BOLD_WEIGHT:
        return True
    name = ctypes.create_string_buffer(128)
    c.FPDFText_GetFontInfo(text, number, name, 128, None)
    said = name.value.lower()
    return any(word in said for word in _BOLD_NAMES)


def _drawn(page: pdfium.PdfPage, turn: _Turn) -> tuple[list[Box], bool]:
    rules: list[Box] = []
    has_picture = False
    left = _MAX_SEGMENTS
    for drawn in page.get_objects(max_depth=2):
        if drawn.type == c.FPDF_PAGEOBJ_IMAGE:
            has_picture = True
        elif drawn.type == c.FPDF_PAGEOBJ_PATH and left > 0 and drawn.level == 0:
            left -= max(1, c.FPDFPath_CountSegments(drawn.raw))
            if left > 0:
                rules.extend(_straight(drawn, turn))
    return rules if left > 0 else [], has_picture


def _straight(drawn: pdfium.PdfObject, turn: _Turn) -> Iterator[Box]:
    """Yield the level and upright lines of a path."""
    matrix = drawn.get_matrix()
    outline: list[tuple[float, float]] = []
    for number in range(c.FPDFPath_CountSegments(drawn.raw)):
        segment = c.FPDFPath_GetPathSegment(drawn.raw, number)
        kind = c.FPDFPathSegment_GetType(segment)
        x, y = ctypes.c_float(), ctypes.c_float()
        c.FPDFPathSegment_GetPoint(segment, x, y)
        if kind == c.FPDF_SEGMENT_MOVETO:
            yield from _lines(outline, turn)
            outline = []
        elif kind != c.FPDF_SEGMENT_LINETO:
            return  # a curve: no rule of a table
        outline.append(matrix.on_point(x.value, y.value))
        if c.FPDFPathSegment_GetClose(segment):
            outline.append(outline[0])
    yield from _lines(outline, turn)


def _lines(outline: list[tuple[float, float]], turn: _Turn) -> Iterator[Box]:
    for (x0, y0), (x1, y1) in pairwise(outline):
        if abs(x0 - x1) <= _MAX_SLANT_PT or abs(y0 - y1) <= _MAX_SLANT_PT:
            yield turn(Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))
