"""The six events that every file of this folder holds: `make.py` writes them, tests/unit/services/trainer expects them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_FIRST = datetime(2024, 3, 9, 10, 20, 30, 250_000, tzinfo=UTC)
# (user, item, kind, value), each a day and a second after the one before. Every second time has no fraction: texts of times are mixed.
_ACTS = [
    (1, 10, "rating", 4.0),
    (2, 20, "click", 1.0),
    (1, 30, "rating", 5.0),
    (3, 10, "rating", 1.0),
    (2, 30, "click", 1.0),
    (3, 20, "rating", 3.5),
]
TIMES = [(_FIRST + timedelta(days=index, seconds=index)).replace(microsecond=250_000 * (1 - index % 2)) for index in range(len(_ACTS))]
USERS = [user for user, _, _, _ in _ACTS]
ITEMS = [item for _, item, _, _ in _ACTS]
KINDS = [kind for _, _, kind, _ in _ACTS]
VALUES = [value for _, _, _, value in _ACTS]
CATEGORIES = {10: ["Drama", "Children's"], 20: ["Sci-Fi", "Drama"], 30: []}
TITLES = ['He said "hi", twice'] * len(_ACTS)


def numbers(unit: str) -> list[int | float]:
    """Return the times as numbers of a unit: s, ms, us, ns, yyyymmdd, yyyymmddhhmmss or float_s."""
    micros = [(time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) for time in TIMES]
    if unit == "float_s":
        return [each / 1e6 for each in micros]
    if unit.startswith("yyyy"):
        return [int(f"{time:%Y%m%d%H%M%S}"[: len("yyyymmddhhmmss") if unit.endswith("ss") else len("yyyymmdd")]) for time in TIMES]
    return [each * 1000 if unit == "ns" else each // {"s": 10**6, "ms": 1000, "us": 1}[unit] for each in micros]


def expected_ms(unit: str) -> list[int]:
    """Return the Unix milliseconds that a reader finds where the times were written as `unit`."""
    if unit in ("date", "yyyymmdd"):
        return [int(time.replace(hour=0, minute=0, second=0, microsecond=0).timestamp()) * 1000 for time in TIMES]
    return [int(ms) // 1000 * 1000 if unit in ("s", "yyyymmddhhmmss") else int(ms) for ms in numbers("ms")]
