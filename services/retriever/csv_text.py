"""Tables in text files (.csv, .tsv) -> one line a row, each cell with its column's name."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from services.retriever.core.text import joined_lines
from services.retriever.outline import Extracted, Outline, Unreadable
from services.retriever.tables import MOST_COMPARED, named_rows, names_columns

# Spreadsheets of countries that write 1,5 part cells by semicolons; some say so in a line of their own.
_DELIMITERS = "\t;|,"
_SAID = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)
_QUOTED = re.compile(r'"[^"]*"')
_LOOKED_AT = 20


def read_csv(text: str) -> Extracted:
    """Return the rows of a table whose cells are parted by commas, semicolons, tabs or bars: by what most of its first lines have alike.

    Raises:
        Unreadable: a cell is longer than 131,072 characters, as after a quotation mark without its end, or too much text.
    """
    said = _SAID.match(text)
    if said is not None:
        return _read(text[said.end() :], said[1])
    lines = islice((_QUOTED.sub("", line) for line in io.StringIO(text) if line.strip()), _LOOKED_AT)
    return _read(text, _delimiter_of(list(lines)))


def _delimiter_of(lines: Sequence[str]) -> str:
    """Return what as many lines as may be have, each as often as the others; of several the one that numbers do not have (1,5)."""

    def num_alike(delimiter: str) -> int:
        counts = Counter(count for line in lines if (count := line.count(delimiter)))
        return max(counts.values(), default=0)

    return max(_DELIMITERS, key=num_alike) if any(map(num_alike, _DELIMITERS)) else ","


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
    begin = list(islice(rows, 1 + MOST_COMPARED))
    width = max(map(len, begin), default=0)
    # What stands alone above a table says what it is about.
    while width > 1 and len(begin) > 1 and sum(map(bool, begin[0])) == 1:
        yield from filter(None, begin.pop(0))
    has_names = bool(begin) and names_columns(begin[0], begin[1:])
    yield from named_rows(chain(begin, rows), has_names=has_names)
