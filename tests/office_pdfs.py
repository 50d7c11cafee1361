"""PDFs with planted facts: text in columns, tables with and without rules, over several pages, running heads."""

from __future__ import annotations

from fpdf import FPDF

from tests.office_facts import FILLER, TOWNS, OfficeFile, price, rule


def pdf_file(number: int) -> OfficeFile:
    file = OfficeFile(f"handbook_{number}.pdf")
    pdf = FPDF()
    if number in (4, 5, 6):
        pdf.header = lambda: _running_head(pdf, number)  # type: ignore[method-assign]
        file.once.append("Running head of the house")
    pdf.add_page()
    _title(pdf, f"Handbook {number}", 20)
    _columns(pdf, file, number, f"Handbook {number}")
    _title(pdf, f"Prices of {number}", 14)
    [_ruled, _ruled_in_two, _unruled, _long][number % 4](pdf, file, number)
    pdf.add_page()
    _title(pdf, f"Returns of {number}", 14)
    pdf.set_font("helvetica", size=10)
    for place in (7, 8):
        pdf.multi_cell(0, 5, f"{FILLER} {rule(number, place)}", new_x="LMARGIN", new_y="NEXT")
        pdf.ln(4)
        file.plant(rule(number, place), title=(f"Returns of {number}", "page "))
    file.raw = bytes(pdf.output())
    return file


def _running_head(pdf: FPDF, number: int) -> None:
    pdf.set_font("helvetica", size=8)
    pdf.set_xy(20, 8)
    pdf.cell(0, 4, f"Running head of the house, {number}, page {pdf.page_no()}", new_x="LMARGIN", new_y="NEXT")
    pdf.ln(6)


def _title(pdf: FPDF, text: str, size: int) -> None:
    pdf.set_font("helvetica", "B", size)
    pdf.cell(0, 14, text, new_x="LMARGIN", new_y="NEXT")
    pdf.set_font("helvetica", size=10)


def _columns(pdf: FPDF, file: OfficeFile, number: int, title: str) -> None:
    """Three columns, or two; every third file has its lines written across them, as some report programs do."""
    parts = [f"{FILLER} {rule(number, place)}" for place in range(4)]
    for place in range(4):
        file.plant(rule(number, place), title=(title, "page 1"))
    if number % 3 != 2:
        with pdf.text_columns(ncols=2 + (number % 3 == 1), gutter=8, line_height=1.3, text_align="L" if number % 2 else "J") as columns:
            columns.write("\n\n".join(parts))
        pdf.ln(8)
        return
    left, right = (pdf.multi_cell(84, 5, "\n".join(parts[start : start + 2]), dry_run=True, output="LINES") for start in (0, 2))
    for row in range(max(len(left), len(right))):
        pdf.cell(95, 5, left[row] if row < len(left) else "")
        pdf.cell(84, 5, right[row] if row < len(right) else "", new_x="LMARGIN", new_y="NEXT")


def _ruled(pdf: FPDF, file: OfficeFile, number: int) -> None:
    with pdf.table() as table:
        table.row(["Town", "Euros for late returns", "Desk"])
        for row, town in enumerate(TOWNS):
            table.row([town, str(price(number, row, 1)), f"room {row + 1}"])
            file.plant(
                f"Town: {town}; Euros for late returns: {price(number, row, 1)}; Desk: room {row + 1}", title=(f"Prices of {number}",)
            )


def _ruled_in_two(pdf: FPDF, file: OfficeFile, number: int) -> None:
    with pdf.table(num_heading_rows=2, text_align="CENTER") as table:
        first = table.row()
        first.cell("Town", rowspan=2)
        first.cell("Prices in euros", colspan=2)
        table.row(["late", "lost"])
        for row, town in enumerate(TOWNS):
            table.row([town, str(price(number, row, 1)), str(price(number, row, 2))])
            file.plant(f"Town: {town}; Prices in euros / late: {price(number, row, 1)}; Prices in euros / lost: {price(number, row, 2)}")


def _unruled(pdf: FPDF, file: OfficeFile, number: int) -> None:
    for cells in (
        ("Town", "Price", "Opening hours"),
        *((town, str(price(number, row, 1)), f"{row + 8} to 18") for row, town in enumerate(TOWNS)),
    ):
        for cell in cells[:-1]:
            pdf.cell(50, 6, cell)
        pdf.cell(50, 6, cells[-1], new_x="LMARGIN", new_y="NEXT")
    for row, town in enumerate(TOWNS):
        file.plant(f"Town: {town}; Price: {price(number, row, 1)}; Opening hours: {row + 8} to 18")


def _long(pdf: FPDF, file: OfficeFile, number: int) -> None:
    """A table over several pages whose names stand on the first one alone."""
    with pdf.table(repeat_headings=0) as table:
        table.row(["Article", "Shelf", "Weight in grams"])
        for row in range(60):
            table.row([f"article {number}-{row}", f"shelf {row % 7}", str(price(number, row, 3))])
    for row in range(0, 60, 6):
        file.plant(f"Article: article {number}-{row}; Shelf: shelf {row % 7}; Weight in grams: {price(number, row, 3)}")
