from __future__ import annotations

import pytest

from services.retriever.core.documents import Section
from services.retriever.extract import Unreadable, extract
from tests.fuzz.documents import fuzz_documents


def sections(path: str, text: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(section.heading, section.paragraphs) for section in extract(path, text.encode())[1]]


def test_text_has_paragraphs_and_its_file_name_is_its_title():
    assert extract("a/late-fees_2024.txt", b"One\ntwo\r\n\r\nthree") == (
        "late fees 2024",
        (Section(heading="", paragraphs=("One\ntwo", "three")),),
    )


def test_markdown_keeps_the_path_of_headings():
    text = "# Rentals\n\nHello.\n\n## Fees\n\nTwo euros.\n\n### Late\n\nMore.\n\n## Returns\n\nA week.\n"
    assert extract("x.md", text.encode())[0] == "Rentals"
    assert sections("x.md", text) == [
        ("Rentals", ("Hello.",)),
        ("Rentals > Fees", ("Two euros.",)),
        ("Rentals > Fees > Late", ("More.",)),
        ("Rentals > Returns", ("A week.",)),
    ]


def test_markdown_marks_are_gone_and_words_stay():
    text = (
        "Some *emphasis*, `code`, a [link](https://x.y/z) and ![a picture](p.png).\nSame paragraph.\n\n- one\n- two\n\n```py\nx = 1\n```\n"
    )
    assert sections("x.md", text) == [
        ("", ("Some emphasis, code, a link and a picture. Same paragraph.", "one", "two", "x = 1")),
    ]


def test_markdown_tables_and_html_in_markdown_are_text():
    text = "| fee | euros |\n|---|---|\n| late | 2 |\n\n<div><p>In <b>HTML</b></p><script>x()</script></div>\n"
    assert sections("x.md", text) == [("", ("fee", "euros", "late", "2", "In HTML"))]


def test_front_matter_gives_the_title_and_is_no_text():
    title, found = extract("x.md", b'---\ntitle: "Our fees"\ntags: [a]\n---\nTwo euros.\n')
    assert title == "Our fees" and found == (Section(heading="", paragraphs=("Two euros.",)),)


HTML = """<!DOCTYPE html><html><head><title> Our
 fees </title><style>p {color: red}</style></head><body>
<nav><a href="/">Home</a></nav><header>Logo</header>
<h1>Rentals</h1><p>Hello <b>there</b>,<br>you.</p><!-- a comment -->
<h2>Fees</h2><ul><li>Late: <em>two</em> euros</li><li>Lost: ten</li></ul>
loose text
<table><tr><td>a</td><td>b</td></tr></table>
<script>alert("no")</script><footer>© us</footer></body></html>"""


def test_html_gives_the_title_the_headings_and_the_blocks_in_order_and_leaves_the_page_around_them_out():
    title, _ = extract("x.html", HTML.encode())
    assert title == "Our fees"
    assert sections("x.htm", HTML) == [
        ("Rentals", ("Hello there,\nyou.",)),
        ("Rentals > Fees", ("Late: two euros", "Lost: ten", "loose text", "a", "b")),
    ]


def test_html_without_a_title_is_called_by_its_first_heading():
    assert extract("x.html", b"<h2>Fees</h2><p>Two.</p>")[0] == "Fees"


def test_broken_html_is_read_as_far_as_it_goes():
    assert sections("x.html", "<p>one<p>two</b></div><h1>H<p>three") != []


@pytest.mark.parametrize(
    ("path", "raw", "reason"),
    [
        ("x.txt", b"caf\xe9", "not UTF-8: invalid continuation byte at byte 3|not UTF-8: unexpected end of data at byte 3"),
        ("x.txt", b"a\x00b", "NUL"),
        ("x.pdf", b"%PDF", ".pdf is none of"),
        ("x", b"", "no suffix"),
        ("x.html", b"<div>" * 100_000, "nested too deeply"),
        ("x.html", b"<p>a</p><![foo[x]]>", "its HTML cannot be parsed: .*marked section"),
        ("x.md", b"# a\n\n<div><![foo[x]]></div>\n", "its HTML cannot be parsed"),
    ],
)
def test_a_file_whose_text_cannot_be_taken_is_refused_with_the_reason(path, raw, reason):
    with pytest.raises(Unreadable, match=reason):
        extract(path, raw)


def test_a_byte_order_mark_is_no_text():
    assert sections("x.txt", "\ufeffHello") == [("", ("Hello",))]


@pytest.mark.parametrize("path", ["x.txt", "x.md", "x.html"])
def test_an_empty_file_has_no_section(path):
    assert extract(path, b" \n ")[1] == ()


@pytest.mark.filterwarnings("ignore")  # Beautiful Soup warns of text that looks like a URL or a file name
def test_damaged_documents_are_read_or_refused():
    """A seeded sample of tests/fuzz/test_documents.py."""
    outcomes = fuzz_documents(800, seed=1)
    assert outcomes["read"] > 100 and outcomes["refused"] > 100, outcomes
