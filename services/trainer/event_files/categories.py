"""What a cell of the column `categories` names. Pure.

The contract, by what the cell is:

- a list (Parquet, JSON lines): each element is one category. A struct or JSON object, in it or alone, is its field `name` or its only one.
- a text in brackets: a list written as text, with or without quotes: JSON (["a", "b"]), Python (['a', 'b']), DuckDB and Spark ([a, b]),
  Postgres ({a,b}).
- any other text: names with one separator between them. "|" if any text of the column has one, else ";", else ",": so the commas of
  "Books, used|Films" belong to a name. `--category-separator` says it where that is not so.
- a number is the category of that name, as an id is ("7.0" too); an empty list names none.
- null says nothing, so what an earlier row said of the item stays. An empty text, NaN and the words for them (`columns.NULL_WORDS`) are
  null: it is what pandas writes into CSV for what it writes as null into Parquet.

A name twice in a cell counts once. Maps, nested lists, structs without `name`, and numpy's print of an array (['a' 'b']) are refused.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from decimal import Decimal

from services.common.platform.ids import canonical_id
from services.trainer.event_files.columns import NULL_WORDS

SEPARATORS = ("|", ";", ",")
"""In the order in which they are looked for."""
MAX_CELL_CHARS = 64 * 1024
"""Longer texts are no list of categories."""
_CLOSING = {"[": "]", "{": "}"}
_ENTITY = re.compile(r"&(?:[A-Za-z]+|#[0-9]+);")
# One element and what ends it; an apostrophe inside a name needs no quotes.
_ELEMENT = re.compile(
    r"""\s*(?: "(?P<double>(?:[^"\\]|\\.|"")*)" | '(?P<single>(?:[^'\\]|\\.|'')*)' | (?P<bare>(?!["'])[^,\[\]{}]*?) )\s*(?P<end>,|$)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)|''|\"\"", re.DOTALL)


class UnreadableCategories(ValueError):
    """A cell outside the contract; the message follows the cell in a sentence."""


def separator_of(cells: Iterable[object]) -> str:
    """Return the separator of a column, seen all its cells; "" when none of its texts has one."""
    plain = "\n".join(cell for cell in cells if isinstance(cell, str) and not _is_bracketed(cell.strip()))
    if "|" in plain:
        return "|"
    return next((sign for sign in SEPARATORS[1:] if sign in _ENTITY.sub("", plain)), "")


def category_names(cell: object, separator: str) -> tuple[str, ...]:
    """Return the categories that a cell names, in its order.

    Args:
        cell: as pyarrow or JSON gives it.
        separator: of the column's plain texts; "" when they are one name each.
    Raises:
        UnreadableCategories: it is outside the contract.
    """
    if isinstance(cell, bytes):
        cell = _decoded(cell)
    if isinstance(cell, str):
        names = _of_text(cell.strip(), separator)
    elif isinstance(cell, (list, tuple)):
        names = [_of_element(element) for element in cell]
    else:
        names = [_of_element(cell)]
    return tuple(dict.fromkeys(name for name in names if name))


def _decoded(cell: bytes) -> str:
    try:
        return cell.decode()
    except UnicodeDecodeError as error:
        raise UnreadableCategories("is no UTF-8; write text as UTF-8") from error


def _is_bracketed(text: str) -> bool:
    return len(text) > 1 and _CLOSING.get(text[0]) == text[-1]


def _of_text(text: str, separator: str) -> list[str]:
    if len(text) > MAX_CELL_CHARS:
        raise UnreadableCategories(f"has {len(text)} characters, at most {MAX_CELL_CHARS} are read")
    if _is_bracketed(text):
        return _of_bracketed(text)
    if text in NULL_WORDS:
        return []
    # pandas makes 7.0 of a number in a column with missing cells.
    return [canonical_id(name) for name in (text.split(separator) if separator else [text])]


def _of_bracketed(text: str) -> list[str]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = _python_literal(text) if "{" in text[1:] else None
    if isinstance(parsed, list):
        return [_of_element(element) for element in parsed]
    if isinstance(parsed, dict):
        return [_of_element(parsed)]
    return _elements(text[1:-1])


def quoted_list(text: str) -> list[str] | None:
    """Return the names of a list as Python prints it (['a', 'b']); None for any other text."""
    if text[1:2] not in ("'", '"'):
        return None
    try:
        return _elements(text[1:-1])
    except UnreadableCategories:
        return None


def _python_literal(text: str) -> object:
    """Return a list of Python's dicts, as pandas writes it into CSV; None when it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape in the text is no business of whoever runs this
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _elements(body: str) -> list[str]:
    names = []
    at = 0
    while True:
        found = _ELEMENT.match(body, at)
        if found is None:
            raise UnreadableCategories('is no list of names (an array printed by numpy?); write ["a", "b"] or a|b')
        quoted = found["double"] if found["double"] is not None else found["single"]
        bare = (found["bare"] or "").strip()
        if bare.endswith("..."):
            raise UnreadableCategories('is a list that was cut when it was printed; write ["a", "b"] or a|b')
        if quoted is not None:
            names.append(_ESCAPE.sub(lambda escape: escape[1] or escape[0][0], quoted).strip())
        elif bare not in NULL_WORDS:
            names.append(canonical_id(bare))
        if not found["end"]:
            return names
        at = found.end()


def _of_element(element: object) -> str:
    """Return the name that one element states; "" when it states none."""
    if element is None:
        return ""
    if isinstance(element, bytes):
        return _decoded(element).strip()
    if isinstance(element, str):
        return element.strip()
    if isinstance(element, Mapping):
        return _of_element(_name_of(element))
    if isinstance(element, (int, float, Decimal)) and not isinstance(element, bool):
        return "" if element != element else _of_number(element)
    raise UnreadableCategories(f"holds a {type(element).__name__} where a name is expected; write a list of texts")


def _of_number(number: float | Decimal) -> str:
    try:
        return str(int(number)) if number == int(number) else str(number)
    except (OverflowError, ValueError) as error:
        raise UnreadableCategories("holds a number that is none; write a list of texts") from error


def _name_of(fields: Mapping[object, object]) -> object:
    if not fields:
        return None
    if "name" in fields or len(fields) == 1:
        name = fields["name"] if "name" in fields else next(iter(fields.values()))
        if isinstance(name, Mapping):
            raise UnreadableCategories("holds a struct whose name is a struct; write a list of texts")
        return name
    raise UnreadableCategories(
        f"has no field 'name' (fields: {', '.join(map(str, fields))}); write a list of texts, or structs with a name"
    )
