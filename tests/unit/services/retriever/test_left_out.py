"""What of a file is in no passage is said, also after a restart: scanned pages, hidden sheets and slides, formulas without values."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pptx
import pytest
from fpdf import FPDF
from PIL import Image

from services.retriever.core.documents import ChunkLimits, FileText, texts_of
from services.retriever.extract import extract
from services.retriever.extraction import ExtractionLimits
from services.retriever.extraction_process import ExtractionProcess
from services.retriever.files import DocumentFolder, FileLimits
from services.retriever.left_out import FILE_NAME, LeftOut
from services.retriever.outline import numbers_of

CHUNKS = ChunkLimits(max_tokens=200, overlap_tokens=40)
PICTURE = Image.new("L", (200, 100), 200)


def a_pdf(pages: str) -> bytes:
    """Return a PDF with a page for each sign: t text, s scanned, b blank."""
    pdf = FPDF()
    for number, kind in enumerate(pages, start=1):
        pdf.add_page()
        if kind == "t":
            pdf.set_font("Helvetica")
            pdf.multi_cell(0, text=f"The fee of year {number} is two euros, whatever was borrowed, and it is due at the end of the month.")
        elif kind == "s":
            pdf.image(PICTURE, w=100)
    return bytes(pdf.output())


def a_book(*, hidden: tuple[str, ...] = (), formulas: int = 0) -> bytes:
    book = openpyxl.Workbook()
    book.active.append(["fee", "euros"])
    book.active.append(["late", 2])
    for number in range(formulas):
        book.active.cell(3 + number, 1, "=1+1")
    for name in hidden:
        sheet = book.create_sheet(name)
        sheet.append(["secret", 1])
        sheet.sheet_state = "hidden"
    return saved(book)


def some_slides(hidden: tuple[int, ...]) -> bytes:
    slides = pptx.Presentation()
    for number in range(1, 6):
        slide = slides.slides.add_slide(slides.slide_layouts[1])
        slide.shapes.title.text = f"Fees of year {number}"
        slide.placeholders[1].text = "Two euros."
        if number in hidden:
            slide._element.set("show", "0")
    return saved(slides)


def saved(document) -> bytes:
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def left_out_of(name: str, raw: bytes) -> list[str]:
    said: list[str] = []
    assert extract(name, raw, say=said.append)[1], "it has text all the same"
    return said


OCR = "without text: run it through a program for text recognition (OCR), e.g. ocrmypdf"


CASES = {
    "one page": ("a.pdf", lambda: a_pdf("tts"), [f"page 3 is a picture {OCR}"]),
    "pages": ("a.pdf", lambda: a_pdf("tsstttts"), [f"pages 2 to 3, 8 are pictures {OCR}"]),
    "a blank page": ("a.pdf", lambda: a_pdf("tbt"), []),
    "a sheet": ("a.xlsx", lambda: a_book(hidden=("Prices",)), ["sheet Prices is hidden: show what is to be found"]),
    "sheets": (
        "a.xlsx",
        lambda: a_book(hidden=tuple("abcdefghijkl")),
        ["sheets a, b, c, d, e, f, g, h, i, j, … are hidden: show what is to be found"],
    ),
    "formulas": ("a.xlsx", lambda: a_book(formulas=2), ["2 formulas have no saved values: open it in Excel or LibreOffice and save it"]),
    "a whole book": ("a.xlsx", a_book, []),
    "a slide": ("a.pptx", lambda: some_slides((2,)), ["slide 2 is hidden: show what is to be found"]),
    "slides": ("a.pptx", lambda: some_slides((1, 2, 4)), ["slides 1 to 2, 4 are hidden: show what is to be found"]),
    "whole slides": ("a.pptx", lambda: some_slides(()), []),
    "text": ("a.txt", lambda: b"Hello.", []),
}


@pytest.mark.parametrize(("name", "made", "said"), CASES.values(), ids=CASES.keys())
def test_a_reader_says_what_the_text_lacks_and_nothing_of_a_whole_file(name: str, made: Callable[[], bytes], said: list[str]) -> None:
    assert left_out_of(name, made()) == said


def test_of_many_numbers_the_first_ones_are_said() -> None:
    assert numbers_of(range(1, 60, 2)) == "1, 3, 5, 7, 9, 11, 13, 15, 17, 19 and 20 more"
    assert numbers_of([*range(1, 500), 900]) == "1 to 499, 900"


class Reads:
    """A reader that counts."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, raw: bytes) -> FileText:
        self.names.append(name)
        left_out: list[str] = []
        title, sections = extract(name, raw, say=left_out.append)
        return FileText(tuple(texts_of(name, title, sections, CHUNKS)), tuple(left_out))


def folder_of(path: Path, read: Reads) -> DocumentFolder:
    limits = FileLimits(max_files=99, max_bytes=2**22)
    return DocumentFolder(path / "docs", limits, CHUNKS, max_batch=9, read=read, left_out=LeftOut(path / FILE_NAME))


def indexed_of(changes) -> dict[str, str]:
    return {document.document_id: document.content_hash for document in changes.documents}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    for name, raw in {"half.pdf": a_pdf("tts"), "whole.pdf": a_pdf("tt"), "b.txt": b"Hello."}.items():
        (tmp_path / "docs" / name).write_bytes(raw)
    return tmp_path


def test_a_restart_knows_what_is_left_out_of_files_that_it_does_not_read_again(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of(files, first := Reads())
    indexed = indexed_of(folder.look({}))
    assert indexed.keys() == {"half.pdf", "whole.pdf", "b.txt"} and len(first.names) == 3
    said = {"half.pdf": f"page 3 is a picture {OCR}"}
    assert folder.incomplete == said and folder.refused == {}
    folder.look(indexed)
    assert folder.incomplete == said
    assert [record.message for record in caplog.records] == [f"file half.pdf is indexed in part: {said['half.pdf']}"], "once"
    again = folder_of(files, second := Reads())
    assert indexed_of(again.look(indexed)) == {} and second.names == []
    assert again.incomplete == said


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"half.pdf": 3}', b"\xff"], ids=["lost", "cut", "a list", "a number", "no text"])
def test_where_it_is_not_known_office_files_are_read_once_more_and_not_indexed_again(files: Path, content: bytes | None) -> None:
    """Another program indexed them, or the file is lost or damaged."""
    indexed = indexed_of(folder_of(files, Reads()).look({}))
    (files / FILE_NAME).unlink()
    if content is not None:
        (files / FILE_NAME).write_bytes(content)
    folder = folder_of(files, reads := Reads())
    assert indexed_of(folder.look(indexed)) == {} and sorted(reads.names) == ["half.pdf", "whole.pdf"]
    assert folder.incomplete.keys() == {"half.pdf"}
    last = folder_of(files, none := Reads())
    last.look(indexed)
    assert none.names == [] and last.incomplete.keys() == {"half.pdf"}


def test_a_file_that_changes_or_goes_is_no_longer_incomplete(files: Path) -> None:
    folder = folder_of(files, Reads())
    indexed = indexed_of(folder.look({}))
    (files / "docs" / "whole.pdf").write_bytes(a_pdf("sttt"))
    (files / "docs" / "half.pdf").write_bytes(a_pdf("tttt"))
    indexed |= indexed_of(folder.look(indexed))
    assert folder.incomplete == {"whole.pdf": f"page 1 is a picture {OCR}"}
    (files / "docs" / "whole.pdf").unlink()
    assert folder.look(indexed).gone == ("whole.pdf",)
    assert folder.incomplete == {}
    assert "whole.pdf" not in (files / FILE_NAME).read_text()


def test_a_disk_that_does_not_take_it_is_said_and_stops_nothing(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    (files / FILE_NAME).with_suffix(".part").mkdir()
    folder = folder_of(files, Reads())
    assert len(folder.look({}).documents) == 3 and folder.incomplete.keys() == {"half.pdf"}
    assert "office files are read once more at the next start" in caplog.text


def test_a_folder_that_is_away_forgets_nothing(files: Path) -> None:
    folder = folder_of(files, Reads())
    indexed = indexed_of(folder.look({}))
    (files / "docs").rename(files / "away")
    folder_of(files, Reads()).look(indexed)
    (files / "away").rename(files / "docs")
    again = folder_of(files, reads := Reads())
    again.look(indexed)
    assert again.incomplete.keys() == {"half.pdf"} and reads.names == []


def test_the_reading_process_passes_it_on() -> None:
    limits = ExtractionLimits(
        cpu_ms=60_000, cpu_setting="C", memory_bytes=2**30, memory_setting="M", unpacked_bytes=2**26, unpacked_setting="U"
    )
    process = ExtractionProcess(limits, CHUNKS)
    try:
        found = process.read("a.pdf", a_pdf("tts"))
        assert found.left_out == (f"page 3 is a picture {OCR}",) and found.passages
        assert process.read("b.txt", b"Hello.").left_out == ()
    finally:
        process.close()
