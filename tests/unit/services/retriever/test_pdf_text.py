from __future__ import annotations

import io

import pypdfium2
import pytest
from fpdf import FPDF

from services.retriever.extract import extract

LINES = ("First line of the text is here", "and its second line goes on", "until the third line ends it.")


def a_pdf(orientation: str = "portrait") -> FPDF:
    pdf = FPDF(orientation=orientation)
    pdf.add_page()
    pdf.set_font("helvetica", size=10)
    return pdf


def read(pdf: FPDF) -> list[tuple[str, tuple[str, ...]]]:
    return [(section.heading, section.paragraphs) for section in extract("a.pdf", bytes(pdf.output()))[1]]


def rows(pdf: FPDF, *lines: tuple[str, ...], widths: tuple[int, ...] = (50, 50, 50)) -> None:
    for line in lines:
        for cell, width in zip(line, widths, strict=False):
            pdf.cell(width, 5, cell)
        pdf.ln(5)


def test_headings_have_levels_by_the_size_of_their_letters_and_the_page_is_the_last():
    pdf = a_pdf()
    for size, style, text in (
        (20, "", "Rentals"),
        (15, "", "Fees"),
        (10, "B", "Late"),
        (10, "", "Two euros a day. " * 20),
        (15, "", "Returns"),
    ):
        pdf.set_font("helvetica", style, size)
        pdf.multi_cell(0, size / 2, text, new_x="LMARGIN", new_y="NEXT")
        pdf.ln(4)
    pdf.set_font("helvetica", size=10)
    pdf.add_page()
    pdf.multi_cell(0, 5, "A week.")
    title, sections = extract("a.pdf", bytes(pdf.output()))
    assert title == "Rentals"
    assert [section.heading for section in sections] == ["Rentals > Fees > Late > page 1", "Rentals > Returns > page 2"]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("page_degrees", [0, 90, 180, 270])
def test_text_is_read_whatever_way_it_and_its_page_are_turned(degrees, page_degrees):
    pdf = a_pdf()
    with pdf.rotation(degrees, 105, 148):
        for number, line in enumerate(LINES):
            pdf.text(60, 140 + 5 * number, line)
    document = pypdfium2.PdfDocument(bytes(pdf.output()))
    document[0].set_rotation(page_degrees)
    buffer = io.BytesIO()
    document.save(buffer)
    document.close()
    ((section),) = extract("a.pdf", buffer.getvalue())[1]
    assert section.paragraphs == (" ".join(LINES),)


def test_what_is_turned_against_the_text_comes_last_and_is_no_heading():
    pdf = a_pdf("landscape")
    with pdf.rotation(90, 200, 100):
        pdf.text(200, 100, "Written upwards")
    for line in LINES:
        pdf.cell(0, 5, line, new_x="LMARGIN", new_y="NEXT")
    assert read(pdf) == [("page 1", (" ".join(LINES), "Written upwards"))]


def test_a_word_that_is_broken_at_the_end_of_a_line_is_whole_and_a_compound_keeps_its_hyphen():
    pdf = a_pdf()
    for line in ("The intro-", "duction names Baden-", "Baden and nothing else."):
        pdf.cell(0, 5, line, new_x="LMARGIN", new_y="NEXT")
    assert read(pdf) == [("page 1", ("The introduction names Baden-Baden and nothing else.",))]


@pytest.mark.parametrize("foot", ["Page {own} of 4", "{other}", "- {own} -", "City library"])
def test_lines_at_the_edges_that_differ_in_a_number_are_text_and_numbers_of_pages_are_not(foot):
    pdf = a_pdf()
    pdf.set_auto_page_break(False)
    for number in range(1, 5):
        if number > 1:
            pdf.add_page()
        pdf.cell(0, 5, f"Invoice {1000 + number} of the library", new_x="LMARGIN", new_y="NEXT")
        pdf.ln(30)
        pdf.cell(0, 5, "The fee is due.", new_x="LMARGIN", new_y="NEXT")
        pdf.set_y(-15)
        pdf.cell(0, 5, foot.format(own=number, other=number + 11))
    texts = [paragraphs for _, paragraphs in read(pdf)]
    assert [some[0] for some in texts] == [f"Invoice {number} of the library" for number in range(1001, 1005)]
    assert texts[0][-1] == foot.format(own=1, other=12), "what is repeated is read once"
    assert [some[-1] for some in texts[1:]] == ["The fee is due."] * 3


def test_a_bold_line_that_nothing_follows_is_text():
    pdf = a_pdf()
    pdf.multi_cell(0, 5, "Two euros a day. " * 20, new_x="LMARGIN", new_y="NEXT")
    pdf.ln(4)
    pdf.set_font("helvetica", "B", 10)
    pdf.cell(0, 5, "Total due 119.00 EUR")
    assert read(pdf)[-1] == ("Total due 119.00 EUR > page 1", ("Total due 119.00 EUR",))


def test_numbered_points_are_paragraphs_and_no_table():
    pdf = a_pdf()
    rows(pdf, *((f"{number}.", f"Point {number} of the list") for number in range(1, 5)), widths=(10, 100))
    assert read(pdf) == [("page 1", tuple(f"{number}. Point {number} of the list" for number in range(1, 5)))]


def test_columns_without_rules_are_a_table_and_the_rest_of_a_cell_belongs_to_its_row():
    pdf = a_pdf()
    rows(pdf, ("Model", "Share", "Remark"), ("small", "0.91", "runs on a"), ("", "", "laptop"), ("large", "0.95", "needs more"))
    rows(pdf, ("huge", "0.97", "-"))
    lines = ("Model: small; Share: 0.91; Remark: runs on a laptop", "Model: large; Share: 0.95; Remark: needs more")
    assert read(pdf) == [("page 1", (*lines, "Model: huge; Share: 0.97; Remark: -"))]


def test_names_that_end_with_a_colon_stand_on_the_left():
    pdf = a_pdf()
    rows(pdf, ("Name:", "Ann Smith"), ("Phone:", "030 123456"), ("Room:", "17b"))
    assert read(pdf) == [("page 1", ("Name: Ann Smith", "Phone: 030 123456", "Room: 17b"))]


def test_a_paragraph_goes_on_over_the_end_of_a_page():
    pdf = a_pdf()
    pdf.cell(0, 5, "A sentence that begins on one page", new_x="LMARGIN", new_y="NEXT")
    pdf.add_page()
    for line in ("and ends on the next.", "A new one."):
        pdf.cell(0, 5, line, new_x="LMARGIN", new_y="NEXT")
        pdf.ln(10)
    assert read(pdf) == [
        ("page 1", ("A sentence that begins on one page and ends on the next.",)),
        ("page 2", ("A new one.",)),
    ]


def test_a_page_full_of_lines_is_a_drawing_and_its_words_are_read():
    pdf = a_pdf()
    for number in range(2_000):
        pdf.line(10, 50 + number / 10, 200, 50 + number / 10)
        pdf.line(10 + number / 12, 50, 10 + number / 12, 250)
    pdf.cell(0, 5, "A plan of the house.")
    assert read(pdf) == [("page 1", ("A plan of the house.",))]
