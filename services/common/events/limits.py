"""Bounds that several parts of the mesh must agree on, and the checks of texts, ids and times against them. Pure.

Imports the standard library only, so cores may use it. Every check takes the error that its caller raises (`InvalidInput` at a door,
`MalformedRecord` for a record): a function from the message to the exception. The message begins with the name of the field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

MAX_ID_BYTES = 128
"""Of any id (user, item, request, feedback, inference, passage, adapter), and of an idempotency key."""
MAX_KIND_BYTES = 64
"""Of a feedback's kind."""
MAX_CATEGORY_BYTES = 256
"""Of one category of an item: it is kept in the states of users and of the whole stream."""
MAX_CATEGORIES = 256
"""Of one item."""
MAX_NAME_CHARS = 64
"""Of what its owner names: a task, a template, a label."""
MAX_CANDIDATES = 5_000
"""Of one request, whatever the settings of router and recommender allow."""
DEFAULT_CANDIDATES = 500
"""What they allow unless they are told otherwise."""
MAX_QUERY_BYTES = 2_048
"""Of what is searched for."""
MAX_RECORD_BYTES = 900_000
"""Of a record's value: with its key and headers it stays under a broker's default limit of 1 MB."""
MAX_AHEAD_MS = 300_000
"""A sender's clock may run ahead by so much. A record from later than that would hold up everything that waits for its time."""

# As milliseconds these are days of early 1970, or years far ahead.
_OTHER_UNITS = {"seconds": (10**8, 10**10), "microseconds": (10**14, 10**16), "nanoseconds": (10**17, 10**19)}

_NAME = re.compile(rf"[a-z0-9][a-z0-9_-]{{0,{MAX_NAME_CHARS - 1}}}")

ErrorOf = Callable[[str], Exception]


def check_text(field: str, value: str, max_bytes: int, error: ErrorOf, *, min_bytes: int = 1) -> None:
    """Raise `error` unless the text has `min_bytes` (0 or 1) to `max_bytes` bytes of UTF-8."""
    # A character takes up to 4 bytes: most texts need not be encoded to be measured.
    if len(value) >= min_bytes and len(value) * 4 <= max_bytes:
        return
    if not value:
        raise error(f"{field}: it is empty; it must have 1 to {max_bytes} bytes")
    size = len(value.encode())
    if size > max_bytes:
        raise error(f"{field}: it has {size} bytes; it must have {min_bytes} to {max_bytes}")


def check_written(field: str, value: str, max_bytes: int, error: ErrorOf) -> None:
    """Raise `error` unless the text has 1 to `max_bytes` bytes of UTF-8 and is not only blanks."""
    size = len(value.encode())
    if not value.strip() or size > max_bytes:
        raise error(f"{field}: it has {size} bytes; it must have 1 to {max_bytes}, and not only blanks")


def check_id(field: str, value: str, error: ErrorOf) -> None:
    """Raise `error` unless the id has 1 to MAX_ID_BYTES bytes."""
    check_text(field, value, MAX_ID_BYTES, error)


def check_ids(field: str, values: Sequence[str], error: ErrorOf) -> None:
    """Raise `error`, naming the position, unless every id has 1 to MAX_ID_BYTES bytes."""
    # Most lists are settled by their longest id; only the others are looked at one by one.
    if all(values) and 4 * max(map(len, values), default=0) <= MAX_ID_BYTES:
        return
    for position, value in enumerate(values):
        check_id(f"{field}[{position}]", value, error)


def check_categories(field: str, names: Sequence[str], error: ErrorOf) -> None:
    """Raise `error` unless there are at most MAX_CATEGORIES, each with 1 to MAX_CATEGORY_BYTES bytes."""
    if len(names) > MAX_CATEGORIES:
        raise error(f"{field}: there are {len(names)}; an item has at most {MAX_CATEGORIES}")
    for position, name in enumerate(names):
        check_text(f"{field}[{position}]", name, MAX_CATEGORY_BYTES, error)


def check_name(field: str, name: str, error: ErrorOf) -> None:
    """Raise `error` unless the name is 1 to MAX_NAME_CHARS of a-z, 0-9, "_" and "-", not beginning with a sign."""
    if not _NAME.fullmatch(name):
        raise error(f"{field}: {name[:80]!r} is not 1 to {MAX_NAME_CHARS} of a-z, 0-9, '_' and '-', starting with a letter or digit")


def check_unit(field: str, value_ms: int, error: ErrorOf) -> None:
    """Raise `error` when a time, Unix milliseconds, is of another unit by its size: of the years 1973 to 2286 in that unit."""
    for unit, (lowest, highest) in _OTHER_UNITS.items():
        if lowest <= value_ms < highest:
            raise error(f"{field}: {value_ms} looks like {unit}; it must be a time in Unix milliseconds")


def check_time(field: str, value_ms: int, now_ms: int, error: ErrorOf) -> None:
    """Raise `error` unless the time, Unix milliseconds by its size, is positive and at most MAX_AHEAD_MS after `now_ms`."""
    if value_ms <= 0:
        raise error(f"{field}: {value_ms} is not a time in Unix milliseconds")
    check_unit(field, value_ms, error)
    if value_ms > now_ms + MAX_AHEAD_MS:
        raise error(f"{field}: it is {value_ms - now_ms} ms in the future; check the sender's clock")
