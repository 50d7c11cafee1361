"""What reading large documents costs, beside parsers in Python that do a part of the same work, in the same run."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from html.parser import HTMLParser

import docx
import openpyxl
import pytest
from fpdf import FPDF
from markdown_it import MarkdownIt

from services.retriever.extract import extract
from tests.processor_time import growth, quickest_s

_MIB = 2**20
# Where a file is eight times as large: 8 where time grows with size, 64 with its square.
_LINEAR_AT_8 = 24


def large(piece: str, num_bytes: int) -> str:
    """An ordinary document of so many bytes."""
    return "".join(piece.replace("@", str(number)) for number in range(num_bytes // len(piece)))


PAGE = """<section><h2 id=s@>Rental rule number @</h2><p class='a b'>Films go back within <b>seven</b> days; every late day costs
<a href='/fees/@'>two euros</a>, as rule @ says. Who loses a film pays its price.</p>
<ul><li>First point about @</li><li>Second point, with an <em>example</em></li></ul>
<table><tr><th>Fee</th><th>Euros</th></tr><tr><td>late @</td><td>@</td></tr></table></section>
"""
MARKDOWN = """## Rental rule number @

Films go back within **seven** days; every late day costs [two euros](/fees/@),
as rule @ says. Who loses a film pays its `price`.

- First point about @
- Second point, with an *example*

| Fee | Euros |
|---|---|
| late @ | @ |

"""


@pytest.mark.parametrize(
    ("path", "text", "parser_in_python"),
    [
        ("x.html", large(PAGE, _MIB), lambda text: HTMLParser().feed(text)),
        ("x.md", large(MARKDOWN, _MIB), lambda text: MarkdownIt("commonmark").enable("table").parse(text)),
    ],
    ids=["html", "markdown"],
)
def test_a_document_is_read_in_less_time_than_python_takes_to_parse_it(path, text, parser_in_python):
    read_s, parsed_s = quickest_s(lambda: extract(path, text.encode()), lambda: parser_in_python(text), rounds=3)
    assert read_s < parsed_s, (read_s, parsed_s)
    title, sections = extract(path, text.encode())
    assert title == "Rental rule number 0" and len(sections) > 2_000
    assert sections[-1].paragraphs[-1].startswith("Fee: late ")


@pytest.mark.parametrize(
    ("path", "piece"),
    [("x.txt", "Who loses film @ pays its price.\n\n"), ("x.html", PAGE), ("x.md", MARKDOWN), ("x.md", "<div>\n\nfilm @\n\n</div>\n\n")],
)
def test_the_time_grows_with_the_size_and_not_faster(path, piece):
    small, large_one = (large(piece, size).encode() for size in (_MIB // 8, _MIB))
    assert growth(lambda: extract(path, small), lambda: extract(path, large_one)) < _LINEAR_AT_8


def a_docx(num_paragraphs: int) -> bytes:
    document = docx.Document()
    for number in range(num_paragraphs):
        document.element.body.append(copy.deepcopy(document.add_paragraph(f"Film {number} goes back within a week.")._p))
    return saved(document.save)


def an_xlsx(num_rows: int) -> bytes:
    book = openpyxl.Workbook()
    for number in range(num_rows):
        book.active.append([f"film {number}", number / 7, "seven days"])
    return saved(book.save)


def a_pdf(num_pages: int) -> bytes:
    pdf = FPDF()
    pdf.set_font("helvetica", size=10)
    for number in range(num_pages):
        pdf.add_page()
        pdf.multi_cell(0, 5, f"Film {number} goes back within a week. " * 40)
    return bytes(pdf.output())


def saved(save: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(("path", "make", "size"), [("x.docx", a_docx, 200), ("x.xlsx", an_xlsx, 500), ("x.pdf", a_pdf, 5)])
def test_the_time_of_an_office_file_grows_with_its_size_and_not_faster(path, make, size):
    small, large_one = make(size), make(8 * size)
    assert growth(lambda: extract(path, small), lambda: extract(path, large_one)) < _LINEAR_AT_8
