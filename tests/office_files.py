"""Forty office files with planted facts, written by the libraries that people write them with: ten each of PDF, Word, PowerPoint and Excel.

A fact is what one passage has to say: words of its text, and of its title. Of a cell these are the names of its row and of its column. The
files differ by their number: how many columns, header rows, pages, sheets; merged cells, notes, hidden parts, number formats.
"""

from __future__ import annotations

import datetime
import io
from collections.abc import Iterator

import docx
import openpyxl
import pptx
import xlsxwriter
from docx.oxml import OxmlElement
from openpyxl.styles import Font
from pptx.util import Inches

from tests.office_facts import FILLER, TOWNS, OfficeFile, price, rule
from tests.office_pdfs import pdf_file


def forty() -> Iterator[OfficeFile]:
    """Yield the files."""
    for make in (pdf_file, _docx, _pptx, _xlsx):
        for number in range(10):
            yield make(number)


# Word


def _docx(number: int) -> OfficeFile:
    file = OfficeFile(f"contract_{number}.docx")
    document = docx.Document()
    document.add_heading(f"Contract {number}", 0)
    document.add_paragraph(f"{FILLER} {rule(number, 20)}")
    file.plant(rule(number, 20), title=(f"Contract {number}",))
    for part in range(2):
        document.add_heading(f"Part {part} of {number}", 1)
        document.add_paragraph(f"{FILLER} {rule(number, 21 + part)}")
        file.plant(rule(number, 21 + part), title=(f"Contract {number}", f"Part {part} of {number}"))
        document.add_heading(f"Details {part}", 2)
        document.add_paragraph(f"Item {number}{part} is listed first", style="List Bullet")
        file.plant(f"Item {number}{part} is listed first", title=(f"Part {part} of {number} > Details {part}",))
        [_word_table, _word_merged, _word_two_header_rows][(number + part) % 3](document, file, number * 2 + part)
    if number % 2:
        _odd_runs(document, file, number)
    _footer(document, file)
    buffer = io.BytesIO()
    document.save(buffer)
    file.raw = buffer.getvalue()
    return file


def _word_table(document: docx.document.Document, file: OfficeFile, number: int) -> None:
    table = document.add_table(1, 3)
    _fill(table.rows[0], "Town", "Fee", "Since")
    for row, town in enumerate(TOWNS[:5]):
        _fill(table.add_row(), town, f"{price(number, row, 1)} €", f"2024-0{row + 1}-15")
        file.plant(f"Town: {town}; Fee: {price(number, row, 1)} €; Since: 2024-0{row + 1}-15")


def _word_merged(document: docx.document.Document, file: OfficeFile, number: int) -> None:
    table = document.add_table(7, 3)
    _fill(table.rows[0], "Region", "Town", "Fee")
    for row, town in enumerate(TOWNS[:6]):
        _fill(table.rows[row + 1], ("North", "", "", "South", "", "")[row], town, str(price(number, row, 1)))
        file.plant(f"Region: {'North' if row < 3 else 'South'}; Town: {town}; Fee: {price(number, row, 1)}")
    table.cell(1, 0).merge(table.cell(3, 0))
    table.cell(4, 0).merge(table.cell(6, 0))


def _word_two_header_rows(document: docx.document.Document, file: OfficeFile, number: int) -> None:
    table = document.add_table(2, 4)
    _fill(table.rows[0], "Town", "Fees", "", "Desk")
    _fill(table.rows[1], "", "late", "lost", "")
    table.cell(0, 1).merge(table.cell(0, 2))
    for column in (0, 3):
        table.cell(0, column).merge(table.cell(1, column))
    for row in table.rows:
        properties = row._tr.get_or_add_trPr()
        properties.append(OxmlElement("w:tblHeader"))
    for row, town in enumerate(TOWNS[:5]):
        _fill(table.add_row(), town, str(price(number, row, 1)), str(price(number, row, 2)), f"room {row}")
        file.plant(f"Town: {town}; Fees / late: {price(number, row, 1)}; Fees / lost: {price(number, row, 2)}; Desk: room {row}")


def _fill(row: docx.table._Row, *texts: str) -> None:
    for cell, text in zip(row.cells, texts, strict=True):
        if text:
            cell.text = text


def _odd_runs(document: docx.document.Document, file: OfficeFile, number: int) -> None:
    """Words that stand in tracked changes, content controls and hidden runs."""
    document.add_heading(f"Changes of {number}", 1)
    paragraph = document.add_paragraph("The deposit ")
    for wrapper, text_tag, text in (("w:ins", "w:t", f"is {number}77 euros"), ("w:del", "w:delText", f"was {number}66 euros")):
        run = paragraph.add_run()
        kept = OxmlElement(text_tag)
        kept.text = text
        run._r.append(kept)
        wrapped = OxmlElement(wrapper)
        run._r.addprevious(wrapped)
        wrapped.append(run._r)
    control, content = OxmlElement("w:sdt"), OxmlElement("w:sdtContent")
    run = paragraph.add_run(" for members.")
    run._r.addprevious(control)
    control.append(content)
    content.append(run._r)
    hidden = paragraph.add_run(f"Hidden remark {number}")
    hidden.font.hidden = True
    file.plant(f"The deposit is {number}77 euros for members.", title=(f"Changes of {number}",))
    file.absent += [f"{number}66 euros", f"Hidden remark {number}"]


def _footer(document: docx.document.Document, file: OfficeFile) -> None:
    document.sections[0].footer.paragraphs[0].text = "Footer of the contract"
    file.absent.append("Footer of the contract")


# PowerPoint


def _pptx(number: int) -> OfficeFile:
    file = OfficeFile(f"briefing_{number}.pptx")
    deck = pptx.Presentation()
    first = deck.slides.add_slide(deck.slide_layouts[0])
    first.shapes.title.text = f"Briefing {number}"
    first.placeholders[1].text = f"For the staff of house {number}"
    file.plant(f"For the staff of house {number}", title=(f"Briefing {number}", "slide 1"))
    for slide_number in range(2, 4 + number % 3):
        _points(deck, file, number, slide_number)
    if number % 2:
        hidden = deck.slides.add_slide(deck.slide_layouts[1])
        hidden.shapes.title.text = f"Backup of {number}"
        hidden._element.set("show", "0")
        file.absent.append(f"Backup of {number}")
    _slide_table(deck, file, number, len(deck.slides) + 1)
    buffer = io.BytesIO()
    deck.save(buffer)
    file.raw = buffer.getvalue()
    return file


def _points(deck: pptx.presentation.Presentation, file: OfficeFile, number: int, place: int) -> None:
    slide = deck.slides.add_slide(deck.slide_layouts[3 if number % 2 else 1])
    slide.shapes.title.text = f"Points {place} of {number}"
    slide.placeholders[1].text = f"First point\n{rule(number, 30 + place)}"
    title = (f"Briefing {number}", f"slide {place}: Points {place} of {number}")
    file.plant(rule(number, 30 + place), title=title)
    if number % 2:
        slide.placeholders[2].text = rule(number, 40 + place)
        file.plant(rule(number, 40 + place), title=title)
    group = slide.shapes.add_group_shape()
    box = group.shapes.add_textbox(Inches(1), Inches(5), Inches(4), Inches(1))
    box.text_frame.text = f"Remark {place} stands in a group of {number}"
    file.plant(f"Remark {place} stands in a group of {number}", title=title)
    slide.notes_slide.notes_text_frame.text = f"Say that slide {place} is about door {number}{place}."
    file.plant(f"Speaker notes: Say that slide {place} is about door {number}{place}.", title=title)


def _slide_table(deck: pptx.presentation.Presentation, file: OfficeFile, number: int, place: int) -> None:
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text = f"Prices of {number}"
    merged = number % 2 == 0
    table = slide.shapes.add_table(5 + merged, 3, Inches(1), Inches(2), Inches(8), Inches(3)).table
    rows = [("Town", "Fees" if merged else "late", "" if merged else "lost"), *([("", "late", "lost")] if merged else [])]
    rows += [(town, str(price(number, row, 1)), str(price(number, row, 2))) for row, town in enumerate(TOWNS[:4])]
    for row, texts in enumerate(rows):
        for column, text in enumerate(texts):
            table.cell(row, column).text = text
    if merged:
        table.cell(0, 0).merge(table.cell(1, 0))
        table.cell(0, 1).merge(table.cell(0, 2))
    above = "Fees / " if merged else ""
    for row, town in enumerate(TOWNS[:4]):
        file.plant(
            f"Town: {town}; {above}late: {price(number, row, 1)}; {above}lost: {price(number, row, 2)}",
            title=(f"slide {place}: Prices of {number}",),
        )


# Excel


def _xlsx(number: int) -> OfficeFile:
    file = OfficeFile(f"prices_{number}.xlsx")
    file.raw = _by_openpyxl(file, number) if number % 2 else _by_xlsxwriter(file, number)
    return file


def _by_openpyxl(file: OfficeFile, number: int) -> bytes:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = f"Fees {number}"
    sheet["A1"] = f"Fees of house {number}"
    sheet["A2"] = "as of January"
    sheet.append([])
    two_rows = number % 4 == 1
    sheet.append(["Town", "Fees", None, "Valid from", "Share"] if two_rows else ["Town", "late", "lost", "Valid from", "Share"])
    if two_rows:
        sheet.append([None, "late", "lost", None, None])
        sheet.merge_cells("B4:C4")
    above = "Fees / " if two_rows else ""
    for row, town in enumerate(TOWNS):
        sheet.append([town, price(number, row, 1) + 0.5, price(number, row, 2), datetime.date(2024, 1 + row, 9), 0.125 + row / 100])
        last = sheet.max_row
        sheet[f"B{last}"].number_format = '#,##0.00 "€"'
        sheet[f"E{last}"].number_format = "0.0%"
        file.plant(
            f"Town: {town}; {above}late: {price(number, row, 1) + 0.5:,.2f} €; {above}lost: {price(number, row, 2)}; "
            f"Valid from: 2024-0{1 + row}-09; Share: {12.5 + row:.1f}%",
            title=(f"Fees {number}",),
        )
    file.plant(f"Fees of house {number}", "as of January", title=(f"Fees {number}",))
    _beside_and_below(book.create_sheet(f"Rooms {number}"), file, number)
    hidden = book.create_sheet("Secret")
    hidden["A1"] = f"Secret sum {number}"
    hidden.sheet_state = "hidden"
    file.absent.append(f"Secret sum {number}")
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def _beside_and_below(sheet: openpyxl.worksheet.worksheet.Worksheet, file: OfficeFile, number: int) -> None:
    """Two tables beside each other, and one below them that has years as names."""
    for row in range(4):
        texts = ("Room", "Seats") if row == 0 else (f"room {number}{row}", row * 4)
        others = ("Key", "Holder") if row == 0 else (f"key {number}{row}", f"person {row}")
        for column, value in zip("ABDE", (*texts, *others), strict=True):
            sheet[f"{column}{row + 1}"] = value
            sheet[f"{column}{row + 1}"].font = Font(bold=row == 0)
        if row:
            file.plant(f"Room: room {number}{row}; Seats: {row * 4}", title=(f"Rooms {number}",))
            file.plant(f"Key: key {number}{row}; Holder: person {row}", title=(f"Rooms {number}",))
    for row, values in enumerate((("Visitors", 2023, 2024), ("children", number + 11, number + 12), ("adults", number + 21, number + 22))):
        for column, value in zip("ABC", values, strict=True):
            sheet[f"{column}{row + 7}"] = value
    file.plant(f"Visitors: adults; 2023: {number + 21}; 2024: {number + 22}")


def _by_xlsxwriter(file: OfficeFile, number: int) -> bytes:
    buffer = io.BytesIO()
    book = xlsxwriter.Workbook(buffer)
    bold, date, money = (
        book.add_format({"bold": True}),
        book.add_format({"num_format": "dd.mm.yyyy hh:mm"}),
        book.add_format({"num_format": "[$$-409]#,##0.00"}),
    )
    sheet = book.add_worksheet(f"Rentals {number}")
    sheet.write_row(1, 1, ["Device", "Rented", "Deposit", "Double", "Back"], bold)
    for row in range(12):
        sheet.write_string(row + 2, 1, f"device {number}-{row}")
        sheet.write_datetime(row + 2, 2, datetime.datetime(2024, 3, row + 1, 14, 30), date)
        sheet.write_number(row + 2, 3, price(number, row, 1), money)
        sheet.write_formula(row + 2, 4, f"=D{row + 3}*2", money, 2 * price(number, row, 1))
        sheet.write_boolean(row + 2, 5, row % 2 == 0)
        file.plant(
            f"Device: device {number}-{row}; Rented: 2024-03-{row + 1:02} 14:30; Deposit: ${price(number, row, 1):,.2f}; "
            f"Double: ${2 * price(number, row, 1):,.2f}; Back: {'TRUE' if row % 2 == 0 else 'FALSE'}",
            title=(f"Rentals {number}",),
        )
    other = book.add_worksheet(f"Regions {number}")
    other.write_row(0, 0, ["Region", "Town", "Clerk"])
    for row, town in enumerate(TOWNS[:6]):
        other.write_row(row + 1, 1, [town, f"clerk {number}{row}"])
        file.plant(f"Region: {'North' if row < 3 else 'South'}; Town: {town}; Clerk: clerk {number}{row}", title=(f"Regions {number}",))
    other.merge_range(1, 0, 3, 0, "North")
    other.merge_range(4, 0, 6, 0, "South")
    other.write_rich_string(8, 0, "The list ", bold, f"ends at {number}8", " o'clock.")
    file.plant(f"The list ends at {number}8 o'clock.")
    book.close()
    return buffer.getvalue()
