"""Tables in text files (.csv, .tsv) -> one line a row, each cell with its column's name."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence

from services.retriever.core.text import joined_lines
from services.retriever.outline import Extracted, Outline, Unreadable
from services.retriever.tables import named_rows

# Spreadsheets of countries that write 1,5 part cells by semicolons; some say so in a line of their own.
_DELIMITERS = ",;\t|"
_SAID = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)
_QUOTED = re.compile(r'"[^"]*"')
_NUMBER = re.compile(r"[-+]?[\d.,\s]*\d[\d.,\s]*%?")


def read_csv(text: str) -> Extracted:
    """Return the rows of a table whose cells are parted by commas, semicolons, tabs or bars: by what its first line has most of.

    Raises:
        Unreadable: a cell is longer than 131,072 characters, as after a quotation mark without its end, or too much text.
    """
    said = _SAID.match(text)
    if said is not None:
        return _read(text[said.end() :], said[1])
    line = _QUOTED.sub("", next((line for line in io.StringIO(text) if line.strip()), ""))
    return _read(text, max(_DELIMITERS, key=line.count))


def read_tsv(text: str) -> Extracted:
    """Return the rows of a table whose cells are parted by tabs.

    Raises:
        Unreadable: see `read_csv`.
    """
    return _read(text, "\t")


def _read(text: str, delimiter: str) -> Extracted:
    outline = Outline("")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows = ([joined_lines(cell).strip() for cell in row] for row in reader)
    filled = (row for row in rows if any(row))
    try:
        for line in _lines(filled):
            outline.add(line)
    except csv.Error as error:
        raise Unreadable(f"it is no table: {error} at line {reader.line_num}") from error
    return outline.result()


def _lines(rows: Iterator[Sequence[str]]) -> Iterator[str]:
    first = next(rows, ())
    has_names = not any(_NUMBER.fullmatch(cell) for cell in first)
    yield from named_rows((row for some in ((first,), rows) for row in some), has_names=has_names)
