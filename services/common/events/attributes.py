"""Attributes of items, users and requests: named, typed values, and the one set of limits for them. Pure, so cores may use it.

What is not known is absent: there is no null, no NaN and no infinity among attributes. A value keeps the kind in which it was written:
JSON's 5 is an integer, 5.0 a number, "5" a text. Who wants a key or a number of it says so (`as_ids`, `as_numbers`), so that writers need
not agree. `wire.attributes` reads and writes them in Protobuf and JSON. Knows nothing about what features are made of them.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, cast

from services.common.events.limits import ErrorOf
from services.common.platform.ids import canonical_id

MAX_ATTRIBUTES = 1_024
"""Of one item, one user, or one request."""
MAX_NAME_BYTES = 128
MAX_TEXT_BYTES = 16 * 1024
"""Of a text, alone or in a list."""
MAX_ELEMENTS = 4_096
"""Of a list."""
MAX_BYTES = 64 * 1024
"""Of all attributes together: names and texts as UTF-8 (in a list 1 more for each), 8 for a number, 1 for true or false."""
ALLOWED = "a text, a whole number, a finite number, true or false, a list of texts, or a list of finite numbers"
"""What a value may be, for messages."""

Attribute = str | int | float | bool | tuple[str, ...] | tuple[float, ...]
Attributes = Mapping[str, Attribute]
Kind = Literal["text", "integer", "number", "boolean", "texts", "numbers"]

NO_ATTRIBUTES: Attributes = MappingProxyType({})

_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
_EXACT = 1 << 53
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = date(1970, 1, 1)
_MILLISECOND = timedelta(milliseconds=1)
_DAY_MS = 86_400_000
_SHOWN_CHARS = 80
_NAMES: Mapping[type, str] = {
    type(None): "null",
    bool: "true or false",
    str: "a text",
    int: "a number",
    float: "a number",
    list: "a list",
    tuple: "a list",
    Mapping: "an object",
}
"""What values are called in messages; the first that fits."""


def kind_of(value: Attribute) -> Kind:
    """Return the kind of a value. An empty tuple is an empty list of whatever is wanted; it counts as texts."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    return "numbers" if value and isinstance(value[0], float) else "texts"


def attributes_of(field: str, given: object, error: ErrorOf) -> dict[str, Attribute]:
    """Return the attributes in an object of JSON, or in a row of cells as pyarrow, pandas or polars give them; a null is absent.

    Of cells a date or time becomes Unix milliseconds (without a zone it is UTC), a decimal the nearest number, binary its UTF-8 text.

    Args:
        field: what the object is called, for messages.
        given: name to value.
        error: what to raise.
    Raises:
        error: it is no object, or a name, a value or their number is not allowed; "FIELD.NAME: …" says what is there and what may be.
    """
    if not isinstance(given, Mapping):
        raise error(f"{field}: it is {_called(given)}; it must be an object of names and values")
    _check_count(field, len(given), error)
    found: dict[str, Attribute] = {}
    for name, raw in given.items():
        _check_name(field, name, error)
        value = attribute_of(f"{field}.{name}", raw, error)
        if value is not None:
            found[name] = value
    check(field, found, error)
    return found


def attribute_of(field: str, raw: object, error: ErrorOf) -> Attribute | None:
    """Return one value in its kind, None for null. Its size and whether it is finite is `check`'s to say.

    Raises:
        error: it is of no kind that is allowed.
    """
    if raw is None or isinstance(raw, bool):
        return raw
    if isinstance(raw, str):
        return raw if type(raw) is str else str.__str__(raw)  # numpy's texts are a subclass
    if isinstance(raw, int):
        return _int64(field, int(raw), error)
    if isinstance(raw, float):
        return float(raw)
    if isinstance(raw, list | tuple):
        return _list(field, raw, error)
    return _of_cell(field, raw, error)


def check(field: str, attributes: Attributes, error: ErrorOf) -> None:
    """Raise `error`, naming the attribute, unless typed values keep the limits and their numbers are finite."""
    if not attributes:
        return
    _check_count(field, len(attributes), error)
    size = 0
    for name, value in attributes.items():
        _check_name(field, name, error)
        size += len(name.encode()) + _checked_size(f"{field}.{name}", value, error)
    if size > MAX_BYTES:
        raise error(f"{field}: together they have {size} bytes; at most {MAX_BYTES} are allowed")


def size_of(attributes: Attributes) -> int:
    """Return the bytes of attributes as MAX_BYTES counts them."""
    return sum(len(name.encode()) + _size(value) for name, value in attributes.items())


def as_ids(field: str, value: Attribute, error: ErrorOf) -> tuple[str, ...]:
    """Return the ids that a value names, in canonical form: 5, 5.0, "5" and " 5.0" are the id "5"; true is "true".

    Raises:
        error: it is a list of numbers, which names none.
    """
    if isinstance(value, str):
        return (canonical_id(value),)
    if isinstance(value, bool):
        return ("true" if value else "false",)
    if isinstance(value, int):
        return (str(value),)
    if isinstance(value, float):
        return (str(int(value)) if value.is_integer() else repr(value),)
    if kind_of(value) == "numbers":
        raise error(f"{field}: it is a list of numbers; an id is a text, a number, true or false, or a list of texts")
    return tuple(map(canonical_id, cast("tuple[str, ...]", value)))


def as_numbers(field: str, value: Attribute, error: ErrorOf) -> tuple[float, ...]:
    """Return the numbers of a value, one for a single one; true is 1.0.

    Raises:
        error: it is a text, or a list of texts.
    """
    if isinstance(value, int | float):
        return (float(value),)
    if isinstance(value, str) or (value and kind_of(value) == "texts"):
        raise error(f"{field}: it is {_called(value)}; it must be a number, true or false, or a list of numbers")
    return cast("tuple[float, ...]", value)


def _int64(field: str, value: int, error: ErrorOf) -> int:
    if not _INT64_MIN <= value <= _INT64_MAX:
        raise error(f"{field}: a whole number of {value.bit_length()} bits is out of int64's range; write it as text")
    return value


def _list(field: str, raw: Sequence[Any], error: ErrorOf) -> Attribute:
    if len(raw) > MAX_ELEMENTS:
        raise error(f"{field}: it has {len(raw)} elements; a list has at most {MAX_ELEMENTS}")
    values = [each if type(each) in (str, float) else _element(f"{field}[{at}]", each, error) for at, each in enumerate(raw)]
    is_text = [isinstance(each, str) for each in values]
    if all(is_text):
        return tuple(cast("list[str]", values))
    if any(is_text):
        raise error(f"{field}: it has texts and numbers; a list is all texts or all numbers")
    return tuple(map(float, values))


def _element(field: str, raw: object, error: ErrorOf) -> str | float:
    value = None if isinstance(raw, list | tuple | Mapping) else attribute_of(field, raw, error)
    if value is None or isinstance(value, bool | tuple):
        raise error(f"{field}: it is {_called(raw)}; an element of a list is a text or a finite number")
    if isinstance(value, int) and abs(value) > _EXACT:
        raise error(f"{field}: {value} is beyond 2**53, where numbers of a list are no longer exact; write the list as texts")
    return value


def _of_cell(field: str, raw: object, error: ErrorOf) -> Attribute | None:
    """Return what JSON has not: values of numpy, pandas and the like. They are known by what they can do; none of them is imported."""
    if isinstance(raw, bytes | bytearray | memoryview):
        try:
            return bytes(raw).decode()
        except UnicodeDecodeError as failure:
            raise error(f"{field}: it is binary that is no UTF-8; it must be {ALLOWED}") from failure
    as_python = getattr(raw, "tolist", None)
    if as_python is not None:  # numpy
        dtype = getattr(raw, "dtype", None)
        if getattr(dtype, "kind", "") == "M":  # its own tolist gives whole numbers of whatever unit
            as_python = raw.astype("datetime64[ms]").tolist  # type: ignore[attr-defined] # numpy's
        return attribute_of(field, as_python(), error)
    if isinstance(raw, datetime):
        return _unix_ms(field, raw, error)
    if isinstance(raw, date):
        return (raw - _EPOCH_DAY).days * _DAY_MS
    if isinstance(raw, Decimal):
        return math.nan if raw.is_snan() else float(raw)
    if isinstance(raw, numbers.Integral):
        return _int64(field, int(raw), error)
    if isinstance(raw, numbers.Real):
        return float(raw)
    raise error(f"{field}: it is {_called(raw)}; it must be {ALLOWED}")


def _unix_ms(field: str, moment: datetime, error: ErrorOf) -> int:
    if moment != moment:  # pandas' NaT is a datetime that is no time
        raise error(f"{field}: it is no time (NaT); leave it out, or null, where there is none")
    return ((moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment) - _EPOCH) // _MILLISECOND


def _check_count(field: str, count: int, error: ErrorOf) -> None:
    if count > MAX_ATTRIBUTES:
        raise error(f"{field}: there are {count}; at most {MAX_ATTRIBUTES} are allowed")


def _check_name(field: str, name: object, error: ErrorOf) -> None:
    fault = _name_fault(name) if isinstance(name, str) else f"is {_called(name)}"
    if fault:
        shown = repr(name[:_SHOWN_CHARS] if isinstance(name, str) else name)
        raise error(f"{field}: the name {shown} {fault}; a name is 1 to {MAX_NAME_BYTES} bytes of printable text without blanks around it")


@lru_cache(maxsize=4_096)  # the names of a mesh are few, and come with every record and request
def _name_fault(name: str) -> str:
    """Return what is wrong with a name, empty for nothing. What is printable has no half of a surrogate pair."""
    if not name:
        return "is empty"
    if not name.isprintable():
        return "has characters that cannot be printed"
    size = len(name.encode())
    if size > MAX_NAME_BYTES:
        return f"has {size} bytes"
    return "has blanks around it" if name != name.strip() else ""


def _checked_size(field: str, value: Attribute, error: ErrorOf) -> int:
    if isinstance(value, str):
        return _checked_text(field, value, error)
    if isinstance(value, float):
        _check_finite(field, value, error)
    elif isinstance(value, tuple):
        if len(value) > MAX_ELEMENTS:
            raise error(f"{field}: it has {len(value)} elements; a list has at most {MAX_ELEMENTS}")
        if kind_of(value) == "texts":
            return len(value) + sum(_checked_text(f"{field}[{at}]", cast("str", each), error) for at, each in enumerate(value))
        if not all(map(math.isfinite, cast("tuple[float, ...]", value))):
            for at, each in enumerate(value):
                _check_finite(f"{field}[{at}]", cast("float", each), error)
    return _size(value)


def _checked_text(field: str, text: str, error: ErrorOf) -> int:
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as failure:
        raise error(f"{field}: it has half of a surrogate pair, which is no character; it must be {ALLOWED}") from failure
    if size > MAX_TEXT_BYTES:
        raise error(f"{field}: it has {size} bytes; a text has at most {MAX_TEXT_BYTES}")
    return size


def _check_finite(field: str, value: float, error: ErrorOf) -> None:
    if not math.isfinite(value):
        raise error(f"{field}: {value} is not finite; leave it out, or null, where there is none")


def _size(value: Attribute) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, tuple):
        return sum(map(_size, value)) + (len(value) if kind_of(value) == "texts" else 0)
    return 1 if isinstance(value, bool) else 8


def _called(value: object) -> str:
    """Return what a value is called, for messages."""
    for kind, name in _NAMES.items():
        if isinstance(value, kind):
            return name
    return f"of type {type(value).__name__}"
