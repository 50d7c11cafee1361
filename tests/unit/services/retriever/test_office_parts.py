"""Parts that the libraries cannot write: notes of Word, diagrams of PowerPoint, text boxes, strings with their pronunciation in Excel."""

from __future__ import annotations

import io
import zipfile

import docx
import openpyxl
import pptx

from services.retriever.extract import extract

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
A = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
R = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def changed(document, *changes: tuple[str, str, str], new: dict[str, str] | None = None) -> bytes:
    """Save a document, replace a text in some of its parts, each (part, text, other), and add new parts."""
    saved, buffer = io.BytesIO(), io.BytesIO()
    document.save(saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(buffer, "w") as package:
        for path in old.namelist():
            data = old.read(path).decode("utf-8", "surrogateescape")
            for part, text, other in changes:
                if part == path:
                    assert text in data
                    data = data.replace(text, other, 1)
            package.writestr(path, data.encode("utf-8", "surrogateescape"))
        for path, text in (new or {}).items():
            package.writestr(path, text)
    return buffer.getvalue()


def relation(name: str, kind: str, target: str) -> str:
    return f'<Relationship Id="{name}" Type="{R}/{kind}" Target="{target}"/></Relationships>'


def paragraphs(name: str, raw: bytes) -> list[str]:
    return [paragraph for section in extract(name, raw)[1] for paragraph in section.paragraphs]


def test_a_note_of_word_follows_the_paragraph_that_refers_to_it_and_lines_between_are_none():
    document = docx.Document()
    document.add_paragraph("The fee is due.")
    document.add_paragraph("Later text.")
    notes = (
        f'<w:footnotes {W}><w:footnote w:id="0" w:type="separator"><w:p><w:r><w:t>line</w:t></w:r></w:p></w:footnote>'
        '<w:footnote w:id="2"><w:p><w:r><w:t>Except in </w:t></w:r><w:r><w:t>May.</w:t></w:r></w:p></w:footnote></w:footnotes>'
    )
    raw = changed(
        document,
        ("word/document.xml", "is due.</w:t></w:r>", 'is due.</w:t></w:r><w:r><w:footnoteReference w:id="2"/></w:r>'),
        ("word/_rels/document.xml.rels", "</Relationships>", relation("rId99", "footnotes", "footnotes.xml")),
        new={"word/footnotes.xml": notes},
    )
    assert paragraphs("a.docx", raw) == ["The fee is due.", "Note: Except in May.", "Later text."]


def test_a_text_box_of_word_is_read_once_and_codes_of_fields_are_not():
    document = docx.Document()
    document.add_paragraph("Before.")
    box = "<w:txbxContent><w:p><w:r><w:t>In the box.</w:t></w:r></w:p></w:txbxContent>"
    field = "<w:r><w:instrText>PAGEREF _Toc1</w:instrText></w:r><w:r><w:t> See page 3.</w:t></w:r>"
    both = (
        '<mc:AlternateContent xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006">'
        f"<mc:Choice>{box}</mc:Choice><mc:Fallback>{box}</mc:Fallback></mc:AlternateContent>"
    )
    raw = changed(document, ("word/document.xml", "Before.</w:t></w:r>", f"Before.</w:t></w:r>{field}<w:r>{both}</w:r>"))
    assert paragraphs("a.docx", raw) == ["Before. See page 3.", "In the box."]


def test_a_presentation_in_sections_is_read_as_one_without():
    deck = pptx.Presentation()
    for name in ("Late fees", "Returns"):
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text, slide.placeholders[1].text = name, f"About {name.lower()}."
    p14 = 'xmlns:p14="http://schemas.microsoft.com/office/powerpoint/2010/main"'
    sections = "".join(
        f'<p14:section name="{name}" id="{{0000000{number}-0000-0000-0000-000000000000}}"><p14:sldIdLst><p14:sldId id="{256 + number}"/>'
        "</p14:sldIdLst></p14:section>"
        for number, name in enumerate(("Fees", "Other"))
    )
    ext = f'<p:ext uri="{{521415D9-36F7-43E2-AB2F-B90AF26B5E84}}"><p14:sectionLst {p14}>{sections}</p14:sectionLst></p:ext>'
    raw = changed(deck, ("ppt/presentation.xml", "</p:presentation>", f"<p:extLst>{ext}</p:extLst></p:presentation>"))
    assert paragraphs("a.pptx", raw) == paragraphs("a.pptx", changed(deck)) == ["About late fees.", "About returns."]


def test_a_slide_of_a_title_alone_is_text_and_its_number_is_none():
    deck = pptx.Presentation()
    for layout, name in ((5, "Late fees"), (6, ""), (5, "word " * 60)):
        slide = deck.slides.add_slide(deck.slide_layouts[layout])
        if name:
            slide.shapes.title.text = name
    first, last = extract("a.pptx", changed(deck))[1]
    assert (first.heading, first.paragraphs) == ("slide 1: Late fees", ("Late fees",))
    assert last.paragraphs == (("word " * 60).strip(),)


def test_a_sheet_without_a_row_of_names_keeps_its_first_row():
    book = openpyxl.Workbook()
    for row in (["Ann", "Berlin", "paid"], ["Bob", "Paris", "open"], ["Cem", "Rome", "paid"]):
        book.active.append(row)
    assert paragraphs("a.xlsx", changed(book)) == ["Ann; Berlin; paid", "Bob; Paris; open", "Cem; Rome; paid"]


def test_the_texts_of_a_diagram_are_read_with_their_slide():
    deck = pptx.Presentation()
    deck.slides.add_slide(deck.slide_layouts[5]).shapes.title.text = "Steps"
    frame = (
        '<p:graphicFrame><p:nvGraphicFramePr><p:cNvPr id="9" name="d"/><p:cNvGraphicFramePr/><p:nvPr/></p:nvGraphicFramePr><a:graphic>'
        f'<a:graphicData><dgm:relIds xmlns:dgm="urn:d" xmlns:r="{R}" r:dm="rId99"/></a:graphicData></a:graphic></p:graphicFrame></p:spTree>'
    )
    text = "<dgm:t><a:p><a:r><a:t>Ask the desk.</a:t></a:r></a:p></dgm:t>"
    data = f'<dgm:dataModel xmlns:dgm="urn:d" {A}><dgm:pt>{text}</dgm:pt></dgm:dataModel>'
    raw = changed(
        deck,
        ("ppt/slides/slide1.xml", "</p:spTree>", frame),
        ("ppt/slides/_rels/slide1.xml.rels", "</Relationships>", relation("rId99", "diagramData", "../diagrams/data1.xml")),
        new={"ppt/diagrams/data1.xml": data},
    )
    (section,) = extract("a.pptx", raw)[1]
    assert (section.heading, section.paragraphs) == ("slide 1: Steps", ("Ask the desk.",))


def test_how_a_string_is_pronounced_is_no_part_of_it():
    book = openpyxl.Workbook()
    book.active["A1"] = "課きく"
    raw = changed(book, ("xl/sharedStrings.xml", "<t>課きく</t>", '<r><t>課</t></r><r><t>きく</t></r><rPh sb="0" eb="1"><t>カ</t></rPh>'))
    assert paragraphs("a.xlsx", raw) == ["課きく"]
