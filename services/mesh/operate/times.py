"""Moments as operators write them, and as request ids carry them. Pure."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime

from services.common.platform.errors import InvalidInput

_AGO = re.compile(r"(\d{1,9})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_VERSION = re.compile(r"\d{1,18}\.\d{1,18}", re.ASCII)
_UNIX = re.compile(r"@(\d{1,15})")


def parse_moment(text: str, *, now_ms: int) -> int | str:
    """Return a version of the ranker, "EPOCH.SEQ", as it is, or else what `parse_time` makes of the text. Raises InvalidInput."""
    return text.strip() if _VERSION.fullmatch(text.strip()) else parse_time(text, now_ms=now_ms)


def parse_time(text: str, *, now_ms: int) -> int:
    """Return a moment as Unix milliseconds.

    Args:
        text: "10m" (that long ago: s, m, h or d), ISO 8601 ("2026-11-22T09:30", local time unless it names a zone), or "@" and Unix
            milliseconds.
        now_ms: the present.
    Raises:
        InvalidInput: none of these, or in the future.
    """
    moment_ms = _parse(text.strip(), now_ms)
    if moment_ms > now_ms:
        raise InvalidInput(f"{text!r} lies in the future")
    return moment_ms


def _parse(text: str, now_ms: int) -> int:
    if ago := _AGO.fullmatch(text):
        return max(0, now_ms - int(ago[1]) * _SECONDS[ago[2]] * 1_000)
    if unix := _UNIX.fullmatch(text):
        return int(unix[1])
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1_000)
    except (ValueError, OverflowError):
        raise InvalidInput(f"{text!r} is no time: use 10m, 2h, 2026-11-22T09:30+00:00 or @1795307400000") from None


def request_time_ms(request_id: str) -> int:
    """Return when a request id was made, Unix milliseconds.

    Raises:
        InvalidInput: not a UUIDv7, hence not a request id of this mesh.
    """
    try:
        parsed = uuid.UUID(request_id)
    except ValueError:
        raise InvalidInput(f"{request_id!r} is no request id: they are UUIDs such as 01932c07-a8f3-7cc1-8a4e-0242ac120002") from None
    if parsed.version != 7:
        raise InvalidInput(f"{request_id!r} is a UUID of version {parsed.version}; request ids are of version 7, which carries their time")
    return parsed.int >> 80


def iso(unix_ms: int) -> str:
    """Return a moment for people: ISO 8601 in UTC with milliseconds; empty for 0, which means unknown."""
    return datetime.fromtimestamp(unix_ms / 1e3, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if unix_ms else ""
