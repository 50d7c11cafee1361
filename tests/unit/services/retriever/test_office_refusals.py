"""Office files that are refused: what is said, and that limits hold before a parser sees anything."""

from __future__ import annotations

import io
import zipfile

import docx
import openpyxl
import pptx
import pytest
from fpdf import FPDF
from PIL import Image

from services.retriever import office_package
from services.retriever.core.documents import ChunkLimits, FileText, texts_of
from services.retriever.extract import extract
from services.retriever.files import DocumentFolder, FileLimits
from services.retriever.left_out import LeftOut
from services.retriever.office_package import MAX_DEPTH, Package, PackageLimits
from services.retriever.outline import Unreadable

MIB = 2**20
CHUNKS = ChunkLimits(max_tokens=99, overlap_tokens=9)
COMPOUND = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504)


def saved(document) -> bytes:
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def a_pdf(text: str = "Two euros.", **encryption) -> bytes:
    pdf = FPDF()
    pdf.add_page()
    pdf.set_font("helvetica", size=11)
    if text:
        pdf.cell(0, 8, text)
    else:
        pdf.image(Image.new("L", (200, 100), 200), w=100)
    if encryption:
        pdf.set_encryption(**encryption)
    return bytes(pdf.output())


def a_docx(text: str = "Two euros.") -> bytes:
    document = docx.Document()
    document.add_paragraph(text)
    return saved(document)


def an_xlsx() -> bytes:
    book = openpyxl.Workbook()
    book.active.append(["Town", "Fee"])
    book.active.append(["Aalen", 2])
    return saved(book)


def replaced(raw: bytes, part: str, data: bytes) -> bytes:
    """Return a package with another part in place of one of its own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, data if info.filename == part else old.read(info))
        if part not in old.namelist():
            new.writestr(part, data)
    return buffer.getvalue()


def refusal(name: str, raw: bytes, limits: PackageLimits = PackageLimits()) -> str:  # noqa: B008
    with pytest.raises(Unreadable) as caught:
        extract(name, raw, limits)
    return str(caught.value)


def body(text: str) -> bytes:
    return f'<w:document xmlns:w="urn:w"><w:body><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:body></w:document>'.encode()


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("a.pdf", b"", "it is empty: 0 bytes; copy or save it again"),
        ("a.docx", b"", "it is empty"),
        ("a.pdf", a_docx(), "its content is a Word document: rename it to .docx"),
        ("a.docx", an_xlsx(), "its content is an Excel workbook: rename it to .xlsx"),
        ("a.xlsx", saved(pptx.Presentation()), "its content is a PowerPoint presentation: rename it to .pptx"),
        ("a.pptx", a_pdf(), "its content is a PDF: rename it to .pdf"),
        ("a.txt", a_pdf(), "its content is a PDF: rename it to .pdf"),
        ("a.csv", an_xlsx(), "its content is an Excel workbook: rename it to .xlsx"),
        ("a.docx", b"{\\rtf1 Two euros.}", "it is not a Word document: its content is RTF; save it as .docx"),
        ("a.docx", COMPOUND, "its content is of Office 97 to 2003 (.doc, .ppt, .xls); save it as .docx"),
        ("a.xlsx", COMPOUND + "EncryptedPackage".encode("utf-16-le"), "it is encrypted: save it without a password"),
        ("a.xlsx", b"Town;Fee\n", "it is not an Excel workbook: its first bytes are 54 6f 77 6e 3b 46 65 65"),
        ("a.pdf", a_pdf(owner_password="o", user_password="u"), "it is encrypted: save it without a password"),
        ("a.pdf", a_pdf("")[:200], "it is damaged"),
        ("a.pdf", b"%PDF-1.7\n" + bytes(500), "it is damaged"),
        ("a.docx", a_docx()[:5_000], "it is damaged"),
        ("a.pdf", a_pdf(""), "1 of its 1 pages are pictures without text (a scan): run it through a program for text recognition (OCR)"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_what_is_wrong_and_what_to_do(name, raw, said):
    assert said in refusal(name, raw)


def test_a_pdf_that_only_its_owner_may_change_is_read():
    assert "Two euros." in str(extract("a.pdf", a_pdf(owner_password="o")))


def test_a_pdf_is_known_where_something_stands_before_it():
    assert "Two euros." in str(extract("a.pdf", b"\r\n" * 20 + a_pdf()))


def test_damaged_parts_are_named():
    for part, data, said in (
        ("word/document.xml", b"<w:document", "its part word/document.xml is no XML"),
        ("word/document.xml", b"", "its part word/document.xml is no XML"),
        ("_rels/.rels", b"<Relationships/>", "no part of it is the document"),
    ):
        assert said in refusal("a.docx", replaced(a_docx(), part, data))
    broken = bytearray(a_docx())
    start = zipfile.ZipFile(io.BytesIO(broken)).getinfo("word/document.xml").header_offset + 60
    broken[start : start + 20] = bytes(20)
    assert "its part word/document.xml cannot be unpacked" in refusal("a.docx", bytes(broken))


def test_what_would_unpack_to_more_than_the_limit_is_refused_before_anything_is_unpacked(monkeypatch):
    limits = PackageLimits(max_bytes=2 * MIB, setting="UNPACKED_SETTING")
    ten_times = replaced(a_docx(), "word/media/white.bmp", bytes(20 * MIB))
    assert len(ten_times) < MIB
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was unpacked"))
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("it was unpacked"))
    said = refusal("a.docx", ten_times, limits)
    assert said == "it would unpack to 20 MiB; at most 2 MiB are read; split it, or raise UNPACKED_SETTING"


def test_a_part_that_states_too_small_a_size_gives_no_more_than_it_states():
    raw = bytearray(replaced(a_docx(), "word/document.xml", body("a" * 10 * MIB)))
    with zipfile.ZipFile(io.BytesIO(raw)) as package:
        info = package.getinfo("word/document.xml")
    stated = info.file_size.to_bytes(4, "little")
    while (at := raw.find(stated)) >= 0:
        raw[at : at + 4] = (1_000).to_bytes(4, "little")
    package = Package(bytes(raw), PackageLimits(max_bytes=MIB))
    with pytest.raises(Unreadable, match=r"document\.xml cannot be unpacked"):
        package.tree("word/document.xml")


def test_a_package_of_too_many_parts_is_refused(monkeypatch):
    monkeypatch.setattr(office_package, "MAX_PARTS", 30)
    buffer = io.BytesIO(a_docx())
    with zipfile.ZipFile(buffer, "a") as package:
        for number in range(300):
            package.writestr(f"word/media/{number}.txt", b"")
    assert "at most 30 are read" in refusal("a.docx", buffer.getvalue())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1", "windows-1251"])
def test_no_entity_of_a_file_is_expanded_in_whatever_encoding_it_is(encoding):
    declared = f'<?xml version="1.0" encoding="{encoding}"?>'
    text = (
        declared
        + '<!DOCTYPE w [<!ENTITY e "expanded">]><w:document xmlns:w="urn:w"><w:body><w:p><w:t>&e;</w:t></w:p></w:body></w:document>'
    )
    said = refusal("a.docx", replaced(a_docx(), "word/document.xml", text.encode(encoding)))
    assert said == "its part word/document.xml declares a document type, which no Office file does: it is not read; save it anew"


def test_elements_that_are_nested_too_deeply_are_refused():
    for depth in (MAX_DEPTH, 10 * MAX_DEPTH, 100 * MAX_DEPTH):
        nested = b'<w:document xmlns:w="urn:w"><w:body>' + b"<w:sdt>" * depth + b"</w:sdt>" * depth + b"</w:body></w:document>"
        assert f"more than {MAX_DEPTH} elements" in refusal("a.docx", replaced(a_docx(), "word/document.xml", nested))
    fits = b"<w:sdtContent>" * (MAX_DEPTH - 5) + b"<w:p><w:r><w:t>Deep.</w:t></w:r></w:p>" + b"</w:sdtContent>" * (MAX_DEPTH - 5)
    whole = b'<w:document xmlns:w="urn:w"><w:body>' + fits + b"</w:body></w:document>"
    assert "Deep." in str(extract("a.docx", replaced(a_docx(), "word/document.xml", whole)))


def test_what_is_hidden_whole_or_has_no_values_is_refused_with_what_to_do():
    deck = pptx.Presentation()
    deck.slides.add_slide(deck.slide_layouts[6])._element.set("show", "0")
    assert "all of its 1 slides are hidden: show those" in refusal("a.pptx", saved(deck))
    book = openpyxl.load_workbook(io.BytesIO(an_xlsx()))
    book.create_sheet("Other")
    book["Sheet"].sheet_state = "hidden"
    without = openpyxl.Workbook()
    without.active["A1"] = "=1+1"
    assert "its 1 formulas have no saved values: open it in Excel or LibreOffice" in refusal("a.xlsx", saved(without))
    assert extract("a.xlsx", saved(book))[1] == ()


def test_the_folder_says_which_office_files_are_refused_and_passes_over_locks_of_open_ones(tmp_path):
    files = {"good.docx": a_docx(), "scan.pdf": a_pdf(""), "old.doc": COMPOUND, "empty.docx": a_docx(""), "~$good.docx": bytes(162)}
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    folder = DocumentFolder(
        tmp_path,
        FileLimits(max_files=99, max_bytes=MIB),
        CHUNKS,
        max_batch=9,
        read=lambda name, raw: FileText(tuple(texts_of(name, *extract(name, raw), CHUNKS))),
        left_out=LeftOut(tmp_path / ".left_out.json"),
    )
    assert [document.document_id for document in folder.look({}).documents] == ["good.docx"]
    assert folder.refused.keys() == {"scan.pdf", "old.doc", "empty.docx"}
    assert folder.refused["old.doc"] == ".doc is not read: save it as .docx"
    assert folder.refused["empty.docx"] == "no text was found in it"


def test_the_strict_form_and_files_with_macros_are_read():
    strict = body("Two euros.").replace(b"urn:w", b"http://purl.oclc.org/ooxml/wordprocessingml/main")
    assert "Two euros." in str(extract("a.docx", replaced(a_docx(), "word/document.xml", strict)))
    assert "Two euros." in str(extract("a.docm", a_docx()))
    assert "Town: Aalen; Fee: 2" in str(extract("A.XLSM", an_xlsx()))
