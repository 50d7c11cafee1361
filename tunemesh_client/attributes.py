"""Attributes of users and requests: from Python's values, numpy's and pandas' to the contract's, with the limits that the mesh has.

`services/common/events/attributes.py` says the same to the mesh; a test compares the two.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, MutableMapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from tunemesh.events.v1 import attributes_pb2

from tunemesh_client.errors import InvalidRequest

Attributes = Mapping[str, Any]
"""By name: a text, a whole number, a finite number, true or false, a list of texts, or a list of finite numbers. None is left out.

Also numpy's and pandas' values and arrays, decimals (the nearest number), and dates and times (Unix milliseconds; without a zone UTC).
"""

NONE: Attributes = MappingProxyType({})

MAX_ATTRIBUTES = 1_024
MAX_NAME_BYTES = 128
MAX_TEXT_BYTES = 16 * 1024
MAX_ELEMENTS = 4_096
MAX_BYTES = 64 * 1024

_ALLOWED = "a text, a whole number, a finite number, true or false, a list of texts, or a list of finite numbers"
_EXACT = 1 << 53
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

Scalar = str | int | float | bool


def write_attributes(field: str, given: Attributes, values: MutableMapping[str, attributes_pb2.Value]) -> None:
    """Write attributes into a map of a message.

    Raises:
        InvalidRequest: a name or a value is not allowed, or they are too many; `details` names the attribute.
    """
    if len(given) > MAX_ATTRIBUTES:
        raise _invalid(f"{field}: there are {len(given)}; at most {MAX_ATTRIBUTES} are allowed")
    size = 0
    for name, raw in given.items():
        name_size = _name_size(field, name)
        if raw is None:
            continue
        value, value_size = _value(f"{field}.{name}", raw)
        values[name].CopyFrom(value)
        size += name_size + value_size
    if size > MAX_BYTES:
        raise _invalid(f"{field}: together they have {size} bytes; at most {MAX_BYTES} are allowed")


def _value(field: str, raw: Any) -> tuple[attributes_pb2.Value, int]:
    """Return the message of a value, and its size as MAX_BYTES counts it."""
    raw = _as_python(raw)
    if isinstance(raw, list | tuple):
        return _list(field, raw)
    value, size = _scalar(field, raw)
    if isinstance(value, str):
        return attributes_pb2.Value(text=value), size
    if isinstance(value, bool):
        return attributes_pb2.Value(boolean=value), size
    return attributes_pb2.Value(integer=value) if isinstance(value, int) else attributes_pb2.Value(number=value), size


def _list(field: str, raw: Sequence[Any]) -> tuple[attributes_pb2.Value, int]:
    if len(raw) > MAX_ELEMENTS:
        raise _invalid(f"{field}: it has {len(raw)} elements; a list has at most {MAX_ELEMENTS}")
    found = [_scalar(f"{field}[{at}]", _as_python(each)) for at, each in enumerate(raw)]
    size = sum(each for _, each in found)
    elements = [each for each, _ in found]
    texts = [each for each in elements if isinstance(each, str)]
    if len(texts) == len(elements):
        return attributes_pb2.Value(texts=attributes_pb2.Texts(values=texts)), size + len(texts)
    for at, each in enumerate(elements):
        if isinstance(each, bool | str) or (isinstance(each, int) and abs(each) > _EXACT):
            raise _invalid(f"{field}[{at}]: {each!r}; a list is all texts, or all finite numbers that are exact (whole ones within 2**53)")
    return attributes_pb2.Value(numbers=attributes_pb2.Numbers(values=map(float, elements))), size


def _scalar(field: str, raw: Any) -> tuple[Scalar, int]:
    if isinstance(raw, bytes | bytearray | memoryview):
        raw = _text_of(field, bytes(raw))
    if isinstance(raw, str):
        return str.__str__(raw), _text_size(field, raw)
    if isinstance(raw, bool):
        return raw, 1
    if isinstance(raw, datetime) and raw == raw:  # pandas' NaT is a datetime that is no time
        return ((raw.replace(tzinfo=UTC) if raw.tzinfo is None else raw) - _EPOCH) // _MILLISECOND, 8
    if isinstance(raw, date) and not isinstance(raw, datetime):
        return (datetime(raw.year, raw.month, raw.day, tzinfo=UTC) - _EPOCH) // _MILLISECOND, 8
    if isinstance(raw, numbers.Integral):
        if not -(1 << 63) <= int(raw) < 1 << 63:
            raise _invalid(f"{field}: a whole number out of int64's range; write it as text")
        return int(raw), 8
    if isinstance(raw, numbers.Real | Decimal):
        number = math.nan if isinstance(raw, Decimal) and raw.is_snan() else float(raw)
        if not math.isfinite(number):
            raise _invalid(f"{field}: {number} is not finite; leave it out, or None, where there is none")
        return number, 8
    raise _invalid(f"{field}: it is of type {type(raw).__name__}; it must be {_ALLOWED}")


def _as_python(raw: Any) -> Any:
    """Return a value or an array of numpy's as Python's; it is not imported."""
    if not hasattr(raw, "tolist") or isinstance(raw, memoryview):
        return raw
    if getattr(getattr(raw, "dtype", None), "kind", "") == "M":  # its own tolist gives whole numbers of whatever unit
        raw = raw.astype("datetime64[ms]")
    return raw.tolist()


def _name_size(field: str, name: object) -> int:
    if isinstance(name, str) and name.isprintable() and name == name.strip():
        size = len(name.encode())
        if 1 <= size <= MAX_NAME_BYTES:
            return size
    shown = name[:80] if isinstance(name, str) else name
    raise _invalid(f"{field}: {shown!r} is no name: 1 to {MAX_NAME_BYTES} bytes of printable text without blanks around it")


def _text_of(field: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise _invalid(f"{field}: it is binary that is no UTF-8; it must be {_ALLOWED}") from error


def _text_size(field: str, text: str) -> int:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise _invalid(f"{field}: it has half of a surrogate pair, which is no character") from error
    if size > MAX_TEXT_BYTES:
        raise _invalid(f"{field}: it has {size} bytes; a text has at most {MAX_TEXT_BYTES}")
    return size


def _invalid(details: str) -> InvalidRequest:
    return InvalidRequest(details, "INVALID_ARGUMENT", "attributes")
