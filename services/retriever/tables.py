"""Tables -> one line a row, each cell with its column's name: "fee: late; euros: 2". A cell without its column says nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

_MAX_NAME_CHARS = 80


def named_rows(rows: Iterable[Sequence[str]], *, has_names: bool) -> Iterator[str]:
    """Yield the lines of a table's rows that are not empty; a row of names alone says what the columns are.

    Args:
        rows: cells, without line breaks and blanks around them.
        has_names: whether the first row holds the columns' names.
    """
    names: Sequence[str] | None = None
    num_lines = 0
    for row in rows:
        if has_names and names is None:
            names = row
            continue
        line = _line(names or (), row)
        if line:
            num_lines += 1
            yield line
    if names is not None and not num_lines and (line := _line((), names)):
        yield line


def _line(names: Sequence[str], cells: Sequence[str]) -> str:
    named = [f"{name[:_MAX_NAME_CHARS]}: {cell}" if name and cell else cell for name, cell in zip(names, cells, strict=False)]
    return "; ".join(cell for cell in [*named, *cells[len(named) :]] if cell)
