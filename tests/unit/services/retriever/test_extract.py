from __future__ import annotations

import functools

import pytest

from services.retriever.core.documents import Section
from services.retriever.extract import extract
from services.retriever.outline import Unreadable
from tests.fuzz.documents import fuzz_documents, fuzz_office_files
from tests.processor_time import growth


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
    assert sections("x.md", text) == [("", ("fee: late; euros: 2", "In HTML"))]


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
        ("Rentals > Fees", ("Late: two euros", "Lost: ten", "loose text", "a; b")),
    ]


def test_html_without_a_title_is_called_by_its_first_heading():
    assert extract("x.html", b"<h2>Fees</h2><p>Two.</p>")[0] == "Fees"


def test_broken_html_is_read_as_far_as_it_goes():
    assert sections("x.html", "<p>one<p>two</b></div><h1>H<p>three") != []


@pytest.mark.parametrize(
    ("path", "raw", "reason"),
    [
        ("x.txt", b"caf\xe9", "not UTF-8: invalid continuation byte at byte 3|not UTF-8: unexpected end of data at byte 3"),
        ("x.txt", "한국어 문서입니다.".encode("euc-kr"), "not UTF-8"),
        ("x.txt", "日本語の文書です。カタカナも。".encode("cp932"), "not UTF-8"),
        ("x.txt", "Größe, Straße und Käse".encode("latin-1"), "not UTF-8"),
        ("x.txt", b"a\x00b", "NUL"),
        ("x.odt", b"PK", ".odt is none of"),
        ("x", b"", "no suffix"),
        ("x.html", b"<div>" * 100_000, "nested too deeply"),
        ("x.md", b">" * 100_000 + b"a", "nested too deeply"),
    ],
)
def test_a_file_whose_text_cannot_be_taken_is_refused_with_the_reason(path, raw, reason):
    with pytest.raises(Unreadable, match=reason):
        extract(path, raw)


def test_html_has_no_errors():
    """A marked section of an unknown keyword ended Python's parser with an error; it is a comment, as in browsers."""
    assert sections("x.html", "<p>a</p><![foo[x]]><p>b") == [("", ("a", "b"))]
    assert sections("x.md", "# a\n\n<div>b<![foo[x]]></div>\n") == [("a", ("b",))]


def test_deep_nesting_overflows_no_stack():
    for opened in ("<div>", "<b>", "<ul><li>", "<table><tr><td>", "<h1><pre>"):
        assert "deep" in str(extract("x.html", (opened * 4_000 + "deep").encode()))
    assert sections("x.html", "<span>" * 100_000 + "deep") == [("", ("deep",))]
    assert sections("x.md", "> " * 4_000 + "deep") == [("", ("deep",))]


def test_html_that_a_block_of_markdown_leaves_open_hides_nothing_of_what_follows():
    for tag in ("nav", "title", "plaintext", "svg", "table", "select", "object"):
        assert "after" in str(sections("x.md", f"before\n\n<{tag}>\n\nafter, with a <{tag}> in it, and end\n")), tag
    text = "- one\n  <div>\n  two</div>\n- three\n\n> <p>four\n\n"
    text += "<details><summary>five</summary>\n\nsix\n\n</details>\n\n<h2>Seven</h2>\n\neight\n"
    assert sections("x.md", text) == [("", ("one", "two", "three", "four", "five", "six")), ("Seven", ("eight",))]


def test_html_in_markdown_that_names_places_like_the_rendering_is_left_out():
    assert sections("x.md", '<div>\n<p data-sourcepos="5:1-5:5">x\n</div>\n\nafter\n')[-1][1][-1] == "after"


CHINESE = "影片可以保留九天，逾期每天收费。这是我们的规定，请在九天以内归还。"


@pytest.mark.parametrize(
    ("path", "raw"),
    [
        ("x.txt", CHINESE.encode("gbk")),
        ("x.md", CHINESE.encode("gb18030")),
        ("x.txt", CHINESE.encode("utf-16")),
        ("x.txt", "\ufeff".encode() + CHINESE.encode()),
        ("x.html", b'<meta charset="gb2312"><p>' + CHINESE.encode("gbk")),
        ("x.html", b'<meta http-equiv="Content-Type" content="text/html; charset=big5"><p>' + "綠色箱子".encode("big5")),
    ],
)
def test_files_of_other_encodings_are_read_where_it_is_certain(path, raw):
    (section,) = extract(path, raw)[1]
    assert section.paragraphs[0] in (CHINESE, "綠色箱子")


def test_a_page_of_one_form_or_without_the_end_of_its_head_has_its_text():
    assert sections("x.html", "<body><form><p>Two euros.</p><button>Go</button></form>") == [("", ("Two euros.",))]
    page = "<html><head><title>Fees</title><style>p{}</style><body><p>Two euros.</p></body></html>"
    assert (extract("x.html", page.encode())[0], sections("x.html", page)) == ("Fees", [("", ("Two euros.",))])


def test_the_breaks_of_a_pages_source_are_no_lines_and_those_of_code_are():
    page = "<p>Two euros\n   a day.</p><p>影片可以\n保留九天。</p><pre>if x:\n    return 1\n</pre><p>a<br>b</p>"
    assert sections("x.html", page) == [("", ("Two euros a day.", "影片可以保留九天。", "if x:\n    return 1", "a\nb"))]
    text = "Two euros\na day.\n\n影片可以\n保留九天。\n\n```py\nif x:\n    return 1\n\n\treturn 2\n```\n"
    assert sections("x.md", text) == [("", ("Two euros a day.", "影片可以保留九天。", "if x:\n    return 1\n    return 2"))]


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("<tr><th>Fee<th>Euros<tr><td>late<td>2<tr><td>lost<td>10", ["Fee: late; Euros: 2", "Fee: lost; Euros: 10"]),
        ("<thead><tr><th>Fee</th><th>Euros</th></tr></thead><tbody><tr><th>late</th><td>2</td></tr></tbody>", ["Fee: late; Euros: 2"]),
        ("<caption>Fees</caption><tr><td>late<td>2", ["Fees", "late; 2"]),
        ("<tr><th>A<th><tr><td>1<td>2<td>3", ["A: 1; 2; 3"]),
        (
            "<tr><th>Town<th>Fee<th>Euros<tr><td rowspan=2>Aalen<td>late<td>2<tr><td>lost<td>10",
            ["Town: Aalen; Fee: late; Euros: 2", "Town: Aalen; Fee: lost; Euros: 10"],
        ),
        ("<tr><td><th>2023<th>2024<tr><th>late<td>2<td>3", ["late; 2023: 2; 2024: 3"]),
        (
            "<tr><th rowspan=2>Fee<th colspan=2>Euros<tr><th>2023<th>2024<tr><td>late<td>2<td>3",
            ["Fee: late; Euros / 2023: 2; Euros / 2024: 3"],
        ),
        ("<tr><td colspan=2>Fees<tr><td>late<td>2", ["Fees", "late; 2"]),
        ("<tr><td rowspan=0>a<td>1<tr><td>2", ["a; 1", "a; 2"]),
        ("<tr><td rowspan=x colspan=99999999999>a<td>1", ["a; 1"]),
        ("<tr><td><h2>Menu</h2><p>Two</p>", ["Two"]),
        ("<tr><td><table><tr><th>A<tr><td>1</table>", ["A: 1"]),
    ],
)
def test_a_cell_keeps_its_columns_name(table, rows):
    assert [paragraph for _, paragraphs in sections("x.html", f"<table>{table}</table>") for paragraph in paragraphs] == rows


def test_a_markdown_table_of_columns_alone_is_not_lost():
    assert sections("x.md", "| a | b |\n|---|---|\n") == [("", ("a; b",))]
    assert sections("x.md", "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | |\n") == [("", ("a: 1; b: 2", "a: 3"))]


def test_a_title_of_many_blanks_takes_no_long_time():
    assert (
        growth(*(functools.partial(extract, "x.md", b"---\ntitle: a" + b" " * size + b"\nb\n---\ntext\n") for size in (25_000, 200_000)))
        < 24
    )


def test_a_byte_order_mark_is_no_text():
    assert sections("x.txt", "\ufeffHello") == [("", ("Hello",))]


@pytest.mark.parametrize("path", ["x.txt", "x.md", "x.html"])
def test_an_empty_file_has_no_section(path):
    assert extract(path, b" \n ")[1] == ()


def test_damaged_documents_are_read_or_refused():
    """A seeded sample of tests/fuzz/test_documents.py."""
    outcomes = fuzz_documents(800, seed=1)
    assert outcomes["read"] > 100 and outcomes["refused"] > 100, outcomes


def test_a_damaged_office_file_is_read_or_refused():
    outcomes = fuzz_office_files(300, seed=1)
    assert outcomes["refused"] > 30 and outcomes["read"] > 30, outcomes
