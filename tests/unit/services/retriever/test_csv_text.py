from __future__ import annotations

import csv
import io

import pytest

from services.retriever.extract import extract
from services.retriever.outline import MAX_TEXT_CHARS, Unreadable


def lines(path: str, text: str, encoding: str = "utf-8") -> list[str]:
    return [line for section in extract(path, text.encode(encoding))[1] for line in section.paragraphs]


def written(rows: list[list[str]], **form: object) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, **form).writerows(rows)
    return file.getvalue()


ROWS = [["fee", "euros", "note"], ["late", "2,5", 'said "now"\nand; then'], ["lost", "", "a\tb|c"]]
READ = ['fee: late; euros: 2,5; note: said "now" and; then', "fee: lost; note: a b|c"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_each_cell_has_its_columns_name_whatever_parts_the_cells(delimiter, end, encoding):
    assert lines("a.csv", written(ROWS, delimiter=delimiter, lineterminator=end), encoding) == READ


def test_tabs_part_the_cells_of_a_tsv_and_a_line_may_say_what_parts_those_of_a_csv():
    assert lines("a.tsv", "a,b\tc\n1,2\t3\n") == ["a,b: 1,2; c: 3"]
    assert lines("a.csv", "sep=;\r\na,b;c\r\nx;y\r\n") == ["a,b: x; c: y"]


def test_a_first_row_with_numbers_is_no_row_of_names():
    assert lines("a.csv", "late,2\nlost,10\n") == ["late; 2", "lost; 10"]
    assert lines("a.csv", "\n,,\nfee,euros\n") == ["fee; euros"]
    assert lines("a.csv", "a,b\n1,2,3\n4\n\n") == ["a: 1; b: 2; 3", "a: 4"]
    assert extract("late_fees.csv", b"a,b\n1,2\n")[0] == "late fees"


def test_a_first_row_like_those_below_is_no_row_of_names_and_years_are_names():
    assert lines("a.csv", "Ann,2024-04-01,2.50 €\nBob,2024-05-01,3.00 €\n") == ["Ann; 2024-04-01; 2.50 €", "Bob; 2024-05-01; 3.00 €"]
    assert lines("a.csv", "Ann,Berlin,paid\nBob,Paris,open\nCem,Rome,paid\n")[1] == "Bob; Paris; open"
    assert lines("a.csv", "Bob,1987\nAnn,1990\n") == ["Bob; 1987", "Ann; 1990"]
    assert lines("a.csv", "Region,2023,2024\nNorth,10,1950\nSouth,2010,7\n")[0] == "Region: North; 2023: 10; 2024: 1950"
    assert lines("a.csv", "fee,euros\nlate,2\nfee,euros\nlost,10\n")[-1] == "fee: lost; euros: 10"


def test_what_parts_the_cells_is_what_the_lines_have_alike_and_a_line_above_the_table_is_text():
    assert lines("a.csv", "Konto 123\nDatum;Betrag\n01.03.;2,50\n02.03.;1,25\n") == [
        "Konto 123", "Datum: 01.03.; Betrag: 2,50", "Datum: 02.03.; Betrag: 1,25"
    ]  # fmt: skip
    assert lines("a.csv", "1,5;2,5\n3,5;4,5\n") == ["1,5; 2,5", "3,5; 4,5"]
    assert lines("a.csv", "fee,note\nlate,first; then\nlost,a; b; c\n") == ["fee: late; note: first; then", "fee: lost; note: a; b; c"]
    assert lines("a.csv", "one\ntwo\n") == ["one: two"]


def test_a_table_that_cannot_be_read_is_refused_with_the_reason():
    with pytest.raises(Unreadable, match=r"it is no table: field larger than field limit .* at line"):
        extract("a.csv", b'a,b\n"' + b"x\n" * 100_000)
    with pytest.raises(Unreadable, match="Mi characters of text"):
        extract("a.csv", ("n" * 80 + ",b\n").encode() + b"1,2\n" * (MAX_TEXT_CHARS // 80))
    assert extract("a.csv", b" \n")[1] == ()
