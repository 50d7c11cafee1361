"""From the values of attributes, as profiles, catalogue, requests and files hold them, to columns. Says what a value of another type is.

An attribute is a number, a truth, a text, a list of those (of numbers: a vector), or a mapping from texts to numbers. Nothing (None, NaN,
an empty or blank text, an empty list) is absent. One function serves all sources, so that none reads a value in its own way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from services.common.platform.errors import InvalidInput
from services.common.platform.ids import canonical_id
from services.common.ranker.declared.values import Numbers, Words

# Of one attribute's list or mapping. What is longer is refused, not cut.
MAX_WORDS = 4_096
MAX_WORD_CHARACTERS = 16 << 10
_INTEGERS = range(-(1 << 63), 1 << 64)


class WrongValue(InvalidInput):
    """An attribute has a value of another type than the feature spec reads it as. Retrying does not help."""


def words_of(name: str, values: Sequence[Any]) -> Words:
    """Return the words of an attribute, a row for each value.

    Numbers are written as ids are: 5, 5.0 and "5.0" are the word "5". A mapping is a word "key:number" for each entry, one of mappings
    "key^key:number".

    Args:
        name: of the attribute, for errors.
        values: of the rows.
    Raises:
        WrongValue: a value is none of these, or is too long.
    """
    return Words.of([_words(name, value) for value in values])


def numbers_of(name: str, values: Sequence[Any], width: int) -> Numbers:
    """Return the numbers of an attribute, `width` a row; wider than 1, a value is a list of as many numbers.

    Raises:
        WrongValue: a value is no number (a text that looks like one is none), or a list of another length.
    """
    if width == 1:
        return Numbers(np.asarray([_number(name, value) for value in values], dtype=np.float64).reshape(-1, 1))
    rows_ND = np.empty((len(values), width), dtype=np.float64)
    for row, value in enumerate(values):
        rows_ND[row] = _vector(name, value, width)
    return Numbers(rows_ND)


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        words = list(_entries(name, value))
    elif _is_list(value):
        words = [word for one in value if (word := word_of(name, one))]
    else:
        word = word_of(name, value)
        return [word] if word else []
    if len(words) > MAX_WORDS:
        raise WrongValue(f"{name}: {len(words)} values, at most {MAX_WORDS} are allowed")
    return words


def _entries(name: str, value: Mapping[Any, Any]) -> Iterable[str]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from (f"{word_of(name, key)}^{word_of(name, second)}:{_number(name, number)!r}" for second, number in inner.items())
        elif inner is not None:
            yield f"{word_of(name, key)}:{_number(name, inner)!r}"


def word_of(name: str, value: Any) -> str:
    """Return a value as a word; "" when it is absent.

    Raises:
        WrongValue: it is no text, number or truth, or too long.
    """
    value = _plain(value)
    if value is None:
        return ""
    if isinstance(value, str):
        if len(value) > MAX_WORD_CHARACTERS:
            raise WrongValue(f"{name}: a text of {len(value)} characters, at most {MAX_WORD_CHARACTERS} are allowed")
        return canonical_id(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(_bounded(name, value))
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() and abs(value) < 1 << 53 else repr(value)
    raise WrongValue(f"{name}: {value!r:.100} is no text, number, truth or list of those")


def _number(name: str, value: Any) -> float:
    """Return a value as a number; NaN when it is absent."""
    value = _plain(value)
    if _is_absent(value):
        return math.nan
    if isinstance(value, int):
        return float(_bounded(name, value))
    if isinstance(value, float):
        return value
    raise WrongValue(f"{name}: {value!r:.100} is no number")


def _vector(name: str, value: Any, width: int) -> Any:
    value = _plain(value)
    if _is_absent(value):
        return math.nan
    if not _is_list(value) or len(value) != width:
        there = f"a list of {len(value)}" if _is_list(value) else f"{value!r:.100}"
        raise WrongValue(f"{name}: {there} is no list of {width} numbers")
    numbers = [_number(name, one) for one in value]
    # Half a vector is none.
    return math.nan if any(map(math.isnan, numbers)) else numbers


def _bounded(name: str, value: int) -> int:
    if value not in _INTEGERS:
        raise WrongValue(f"{name}: an integer of {value.bit_length()} bits, at most 64 are allowed")
    return value


def _is_absent(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (_is_list(value) and not len(value)) or (isinstance(value, float) and math.isnan(value))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))
