"""PDFs -> sections, by PDFium: headings by the size of their letters, tables by their rules or columns, "page 3" as the last heading.

What is repeated at the top or the bottom of pages is kept once. Refused: a scan, which has pictures and no text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise

import pypdfium2 as pdfium
from pypdfium2 import raw as c

from services.retriever.core.text import joined_lines
from services.retriever.office_package import PackageLimits
from services.retriever.outline import Extracted, Outline, Say, Unreadable, numbers_of, unheard
from services.retriever.pdf_layout import Block, Line, Table, arranged, lines_of, turned_line
from services.retriever.pdf_page import BROKEN_WORD, Page, Word, read_page
from services.retriever.pdf_tables import cells_of, grids_of
from services.retriever.tables import num_name_rows, rows_of_cells

_PAGE_LEVEL = 50
_BOLD_LEVEL = 9
_HEADING_SIZE = 1.15
"""Of letters, against those of most of the text."""
_MAX_HEADING_CHARS = 160
_MAX_BOLD_HEADING_CHARS = 80
_MAX_HEADING_LINES = 3
_EDGE = 0.1
"""Of a page's height, at the top and at the bottom, where running heads stand."""
_REPEATED_SHARE = 0.4
_SAME_EDGE_PT = 4.0
_MAX_PAGE_DIGITS = 6
_MAX_LEADING = 0.75
_MORE_LEADING = 0.3
"""Above the usual gap between two lines, in heights of a line: what parts paragraphs."""
_SAME_SIZE = 0.08
_MIN_TEXT_SHARE = 0.2
_SHORT_SHARE = 0.2
_MAX_STRANGE_SHARE = 0.3
_SENTENCE_ENDS = (".", "!", "?", ":", "。", "！", "？", "”", '"')
_MARKED = re.compile(r"(?:[•‣◦▪●○■□–—*·]|-|\(?(?:\d{1,3}|[a-zA-Z])[.)])\s")
_DIGITS = re.compile(r"\d+")


class _Text:
    """Lines that are one paragraph or heading."""

    def __init__(self, line: Line) -> None:
        self.lines, self.right, self.is_bold = [line], line.box.right, line.is_bold

    def add(self, line: Line) -> None:
        """Take the next line."""
        self.lines.append(line)
        self.right, self.is_bold = max(self.right, line.box.right), self.is_bold and line.is_bold

    @cached_property
    def text(self) -> str:
        """All lines as one. Once it was asked for, no line may be added."""
        return _joined([line.text for line in self.lines])

    @cached_property
    def size(self) -> float:
        """Of most of its lines."""
        sizes = Counter[float]()
        for line in self.lines:
            sizes[round(line.box.height, 1)] += len(line.text)
        return sizes.most_common(1)[0][0]


def read_pdf(raw: bytes, _: PackageLimits, say: Say = unheard) -> Extracted:
    """Return the title (its first heading, or what the file says) and the sections; `say` is told of pages that are pictures.

    Raises:
        Unreadable: damaged, encrypted, a scan, of fonts that do not say their letters, or too much text.
    """
    try:
        document = pdfium.PdfDocument(raw)
    except pdfium.PdfiumError as error:
        if getattr(error, "err_code", None) == c.FPDF_ERR_PASSWORD:
            raise Unreadable("it is encrypted: save it without a password") from error
        raise Unreadable(f"it is damaged: {error}; copy it again, or print it to a new PDF") from error
    try:
        pages = [_page(document, number) for number in range(len(document))]
        said = document.get_metadata_dict().get("Title", "")
    finally:
        document.close()
    _check(pages)
    _say_scanned(pages, say)
    words = Counter[float]()
    for word in (word for page in pages for word in page.words):
        words[round(word.box.height, 1)] += len(word.text)
    blocks = [
        _blocks_of(page, number, dropped) for number, (page, dropped) in enumerate(zip(pages, _repeated(pages), strict=True), start=1)
    ]
    return _outlined(blocks, words, said)


def _page(document: pdfium.PdfDocument, number: int) -> Page:
    try:
        page = document[number]
    except pdfium.PdfiumError as error:
        raise Unreadable(f"it is damaged: page {number + 1}: {error}; copy it again, or print it to a new PDF") from error
    try:
        return read_page(page)
    finally:
        page.close()


def _check(pages: Sequence[Page]) -> None:
    """Raises:
    Unreadable: the text is not what a reader sees.
    """
    without = [page for page in pages if not page.words]
    if sum(page.has_picture for page in without) > len(pages) / 2:
        raise Unreadable(
            f"{len(without)} of its {len(pages)} pages are pictures without text (a scan): run it through a program for text "
            "recognition (OCR), e.g. ocrmypdf"
        )
    letters = [letter for page in pages for word in page.words for letter in word.text]
    strange = sum(letter == "\ufffd" or "\ue000" <= letter <= "\uf8ff" or (letter < " " and letter != BROKEN_WORD) for letter in letters)
    if strange > _MAX_STRANGE_SHARE * len(letters):
        raise Unreadable("its fonts do not say which letters they draw: save it anew from the program that wrote it, or use OCR")


def _say_scanned(pages: Sequence[Page], say: Say) -> None:
    scanned = [number for number, page in enumerate(pages, start=1) if page.has_picture and not page.words]
    if scanned:
        what = f"page {scanned[0]} is a picture" if len(scanned) == 1 else f"pages {numbers_of(scanned)} are pictures"
        say(f"{what} without text: run it through a program for text recognition (OCR), e.g. ocrmypdf")


_Edge = tuple[str, int]
_Edges = set[_Edge]


def _edges_of(page: Page, line: Line, number: int) -> Iterator[_Edge]:
    """Yield what a running head is known by on other pages: its text, and its text without the page's number. Nothing in the page's middle.

    Other numbers stay: lines that differ in an invoice's number alone are text.
    """
    box = line.box
    if not _EDGE * page.height < (box.bottom + box.top) / 2 < (1 - _EDGE) * page.height:
        place = round(box.bottom / _SAME_EDGE_PT)
        yield line.text, place
        yield f"#{_without_page(line.text, number)}", place


def _without_page(text: str, number: int) -> str:
    """Return a text with a sign in place of the page's number, which may be counted from another page on where it stands without words."""
    if not any(letter.isalpha() for letter in text):
        return _DIGITS.sub(lambda found: f"#{int(found[0][:_MAX_PAGE_DIGITS]) - number}", text, count=1)
    own = next((found for found in _DIGITS.finditer(text) if found[0].lstrip("0") == str(number)), None)
    return text if own is None else f"{text[: own.start()]}#{text[own.end() :]}"


def _repeated(pages: Sequence[Page]) -> list[_Edges]:
    """Return for each page what stands at its edges and on an earlier page too."""
    edges = [
        {edge for line in lines_of([word for word in page.words if word.is_upright]) for edge in _edges_of(page, line, number)}
        for number, page in enumerate(pages, start=1)
    ]
    counts = Counter(edge for some in edges for edge in some)
    seen: _Edges = set()
    repeated: list[_Edges] = []
    for some in edges:
        often = {edge for edge in some if counts[edge] >= max(2, _REPEATED_SHARE * len(pages))}
        repeated.append({edge for edge in often if edge in seen})
        seen |= often
    return repeated


def _blocks_of(page: Page, number: int, dropped: _Edges) -> list[Block]:
    """Return the lines and tables of a page, in the order in which they were written; what is turned against them comes last."""
    grids = [grid for grid in grids_of(page.rules) if any(grid.box.holds(word.box) for word in page.words)]
    inside: dict[int, list[Word]] = {}
    runs: list[list[Word] | int] = [[]]
    for word in page.words:
        if not word.is_upright:
            continue
        at = next((at for at, grid in enumerate(grids) if grid.box.holds(word.box)), None)
        if at is None:
            if isinstance(runs[-1], int):
                runs.append([])
            runs[-1].append(word)  # type: ignore[union-attr] # the line above
            continue
        if at not in inside:
            runs.append(at)
        inside.setdefault(at, []).append(word)
    blocks: list[Block] = []
    for run in runs:
        if isinstance(run, int):
            blocks.append(Table(cells_of(grids[run], inside[run]), grids[run].xs))
        else:
            blocks.extend(arranged([line for line in lines_of(run) if dropped.isdisjoint(_edges_of(page, line, number))]))
    turned = [word for word in page.words if not word.is_upright]
    return [*blocks, turned_line(turned)] if turned else blocks


def _outlined(pages: list[list[Block]], words: Counter[float], said: str) -> Extracted:
    leading = _leading(pages)
    texts = [list(_paragraphs(blocks, leading)) for blocks in pages]
    _join_pages(texts)
    body = _body_size([text for page in texts for text in page if isinstance(text, _Text)], words)
    larger = sorted({text.size for page in texts for text in page if isinstance(text, _Text) and _is_large(text, body)}, reverse=True)
    outline, title = Outline(""), ""
    for number, page in enumerate(texts, start=1):
        outline.heading(_PAGE_LEVEL, f"page {number}", own="")
        for block in page:
            if isinstance(block, Table):
                for row in rows_of_cells(block.rows):
                    outline.add(row)
            elif (level := _level_of(block, body, larger)) is not None:
                title = title or block.text
                outline.heading(level, block.text)
                outline.heading(_PAGE_LEVEL, f"page {number}", own="")
            else:
                outline.add(block.text)
    return title or said, outline.result()[1]


def _body_size(texts: Iterable[_Text], words: Counter[float]) -> float:
    """Return the size of most letters: of those outside of tables, unless there is hardly any text but tables."""
    sizes = Counter[float]()
    for text in texts:
        sizes[text.size] += len(text.text)
    counted = sizes if sizes.total() >= _MIN_TEXT_SHARE * words.total() else words
    return counted.most_common(1)[0][0] if counted else 0.0


def _is_large(text: _Text, body: float) -> bool:
    return text.size >= _HEADING_SIZE * body > 0 and len(text.lines) <= _MAX_HEADING_LINES and 1 < len(text.text) <= _MAX_HEADING_CHARS


def _level_of(text: _Text, body: float, larger: list[float]) -> int | None:
    """Return the level of a heading; None for other paragraphs."""
    if _is_large(text, body):
        return min(1 + larger.index(text.size), _BOLD_LEVEL - 1)
    is_short = len(text.lines) == 1 and len(text.text) <= _MAX_BOLD_HEADING_CHARS and not text.text.endswith(_SENTENCE_ENDS)
    if is_short and text.is_bold and any(letter.isalpha() for letter in text.text) and text.size >= 0.95 * body:
        return _BOLD_LEVEL
    return None


def _leading(pages: Iterable[Sequence[Block]]) -> float:
    """Return the usual gap between two lines, in heights of a line."""
    gaps: Counter[float] = Counter()
    for blocks in pages:
        lines = [block.box for block in blocks if isinstance(block, Line)]
        for above, below in pairwise(lines):
            gap = (above.bottom - below.top) / max(below.height, 1.0)
            if -0.5 < gap < 2 * _MAX_LEADING:
                gaps[round(gap, 1)] += 1
    return gaps.most_common(1)[0][0] if gaps else 0.0


def _paragraphs(blocks: Sequence[Block], leading: float) -> Iterator[_Text | Table]:
    current: _Text | None = None
    for block in blocks:
        if isinstance(block, Table):
            if current is not None:
                yield current
            current = None
            yield block
        elif current is not None and _goes_on(current, block, leading):
            current.add(block)
        else:
            if current is not None:
                yield current
            current = _Text(block)
    if current is not None:
        yield current


def _goes_on(text: _Text, line: Line, leading: float) -> bool:
    """Say whether a line belongs to the paragraph above it."""
    above, box, last = text.lines[-1].box, line.box, text.lines[-1]
    gap = (above.bottom - box.top) / max(box.height, 1.0)
    if not -0.5 < gap < leading + _MORE_LEADING or abs(above.height - box.height) > _SAME_SIZE * box.height:
        return False
    if text.is_bold != line.is_bold or _MARKED.match(line.text):
        return False
    # A paragraph's last line is short.
    return not (last.text.endswith(_SENTENCE_ENDS) and max(text.right, box.right) - above.right > _SHORT_SHARE * (text.right - above.left))


def _join_pages(pages: list[list[_Text | Table]]) -> None:
    """Put what goes on over the end of a page where it begins: the rest of a paragraph, and a table's names above its rows."""
    last: _Text | Table | None = None
    for page in pages:
        first = page[0] if page else None
        if isinstance(last, _Text) and isinstance(first, _Text) and _is_broken(last, first):
            for line in first.lines:
                last.add(line)
            del page[0]
        elif isinstance(last, Table) and isinstance(first, Table) and _has_same_columns(last, first):
            names = last.rows[: num_name_rows(last.rows)]
            if [[cell.text for cell in row] for row in names] != [[cell.text for cell in row] for row in first.rows[: len(names)]]:
                page[0] = Table([*names, *first.rows], first.edges)
        last = page[-1] if page else last


def _is_broken(last: _Text, first: _Text) -> bool:
    text, more = last.lines[-1].text, first.lines[0].text
    height, other = last.lines[-1].box.height, first.lines[0].box.height
    same = abs(height - other) <= _SAME_SIZE * height and last.is_bold == first.is_bold
    goes_on = more[:1].islower() or text.endswith(",") or (text.endswith("-") and text[-2:-1].isalnum())
    return same and bool(text) and not text.endswith(_SENTENCE_ENDS) and goes_on


def _has_same_columns(last: Table, first: Table) -> bool:
    return len(last.edges) == len(first.edges) and all(
        abs(one - other) <= _SAME_EDGE_PT for one, other in zip(last.edges, first.edges, strict=True)
    )


def _joined(lines: Sequence[str]) -> str:
    """Return lines as one: a word that was broken at the end of one is whole again, and a compound has no blank inside."""
    parts: list[str] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if following and line[-1:] in ("-", BROKEN_WORD) and line[-2:-1].isalnum():
            parts.append(line[:-1] if line[-2].isalpha() and following[0].islower() else f"{line[:-1]}-")
        else:
            parts.append(line)
            # No blank between two Chinese characters.
            parts.append(joined_lines(f"{line[-1:]}\n{following[:1]}")[1:-1] if following else "")
    return "".join(parts).replace(BROKEN_WORD, "-")
