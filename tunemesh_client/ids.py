"""Ids: those that the client mints, and how those of users and items are written."""

from __future__ import annotations

import numbers
import os
import re
import time
from collections.abc import Iterable

from tunemesh_client.errors import InvalidRequest

_VERSION_AND_VARIANT = 0x7 << 76 | 0x2 << 62
_RANDOM = (1 << 80) - 1 & ~(0xF << 76 | 0x3 << 62)


_WHOLE_FLOAT = re.compile(r"(-?)(0|[1-9][0-9]*)\.0+")
_MAY_CHANGE = re.compile(r"\s|\.0")
_EXACT_BELOW = 1 << 53

Id = str | int | float
"""What may be given as a user's or an item's id: a text, or a whole number (also numpy's and pandas')."""


def canonical_id(given: Id, field: str) -> str:
    """Return an id as every part of the mesh writes it, so that 1, 1.0, "1" and " 1.0" are one user.

    Blanks around a text go, and a whole number that was written as a float is that number. Everything else stays: leading zeros, case,
    exponents, fractions.

    Raises:
        InvalidRequest: it is neither a text nor a whole number that is exact (pandas makes floats of integers as soon as one is missing;
            beyond 2**53 they are rounded). `details` names the field.
    """
    if isinstance(given, str):
        text = given.strip()
        whole = _WHOLE_FLOAT.fullmatch(text) if text.endswith("0") else None
        if whole is None:
            return text
        return whole[2] if whole[2] == "0" else f"{whole[1]}{whole[2]}"
    if isinstance(given, numbers.Real) and not isinstance(given, bool):
        is_exact = isinstance(given, numbers.Integral) or (abs(given) <= _EXACT_BELOW and given == int(given))
        if is_exact:
            return str(int(given))
    raise InvalidRequest(f"{field}: {given!r} is no id; give a text or a whole number", "INVALID_ARGUMENT", "an id")


def canonical_ids(given: Iterable[Id], field: str) -> list[str]:
    """Return `canonical_id` of each; a list of texts in which nothing changes, as nearly all are, costs one look at all of it."""
    each = list(given)
    try:
        if _MAY_CHANGE.search("\x00".join(each)) is None:  # type: ignore[arg-type] # the next line answers for what is no text
            return each  # type: ignore[return-value]
    except TypeError:
        pass  # some are numbers
    return [canonical_id(one, field) for one in each]


def new_id() -> str:
    """Return a UUIDv7 (RFC 9562, section 5.7): unique, and in the order of time."""
    millis = time.time_ns() // 1_000_000
    number = millis << 80 | int.from_bytes(os.urandom(10), "big") & _RANDOM | _VERSION_AND_VARIANT
    text = f"{number:032x}"  # uuid.UUID takes longer than all the rest
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
