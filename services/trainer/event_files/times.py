"""What a column of times means, as Unix milliseconds. Pure.

A file is read in batches, and what its column means is a matter of all its rows: `TimeFacts` are gathered in a first reading.

A typed column (timestamp, date) says it itself. A number is recognised by its magnitude: from 1971 to 2199 no number of seconds,
milliseconds, microseconds or nanoseconds, no yyyymmdd and no yyyymmddhhmmss can be any of the others. A text is an ISO 8601 date or moment,
with any number of fractional digits and any offset. What has no zone is taken for UTC. Nothing is guessed: mixed units, mixed cells with
and without a zone, day-first dates, and times outside 1970 to 2199 (0001-01-01 and 9999-12-31 stand for "none") are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from services.trainer.event_files.columns import is_textual, plain, texts
from services.trainer.event_files.places import Place

Int64Array = npt.NDArray[np.int64]

FIRST_MS, LAST_MS = 0, 7_258_118_400_000
"""1970-01-01 (included) and 2200-01-01 (excluded)."""
_ADVICE = "write Unix seconds or milliseconds as integers, ISO 8601 with a zone, or a timestamp column; or say --time-unit"
_MOMENT = re.compile(
    r"([0-9]{4})([-/])([0-9]{2})\2([0-9]{2})"
    r"(?:[T ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]{1,18}))?)?"
    r" ?(Z|z|UTC|GMT|[+-][0-9]{2}(?::?[0-9]{2})?)?)?"
)
_NUMBER = r"^[+-]?[0-9]+([.][0-9]*)?([eE][+-]?[0-9]+)?$"
_MS_OF = {"s": 1_000, "ms": 1}
_PER_MS = {"us": 1_000, "ns": 1_000_000}


@dataclass(frozen=True, slots=True)
class _Unit:
    """How numbers of one unit become milliseconds: those from `first` (1971-01-01) up to `end` (2200-01-01, excluded)."""

    name: str
    described: str
    first: float
    end: float
    to_ms: Callable[[npt.NDArray[Any]], Int64Array]


def _scaled(multiplier: int, divisor: int) -> Callable[[npt.NDArray[Any]], Int64Array]:
    def to_ms(numbers_N: npt.NDArray[Any]) -> Int64Array:
        if numbers_N.dtype == np.int64:
            return numbers_N * multiplier // divisor
        return np.rint(numbers_N * (multiplier / divisor)).astype(np.int64)

    return to_ms


def _calendar(pattern: str) -> Callable[[npt.NDArray[Any]], Int64Array]:
    def to_ms(numbers_N: npt.NDArray[Any]) -> Int64Array:
        distinct, codes_N = np.unique(numbers_N, return_inverse=True)
        return np.asarray([_digits_ms(number, pattern) for number in distinct.tolist()], np.int64)[codes_N]

    return to_ms


def _digits_ms(number: float, pattern: str) -> int:
    """Return the moment that a number spells, or -1 when it spells none (20241301, or 20240101.5)."""
    try:
        moment = datetime.strptime(str(int(number)) if number == int(number) else "", pattern).replace(tzinfo=UTC)
    except ValueError:
        return -1
    return int(moment.timestamp()) * 1000


_YEAR_1971, _YEAR_2200 = 31_536_000, 7_258_118_400
UNITS = (
    _Unit("yyyymmdd", "dates as yyyymmdd", 19_710_101, 22_000_101, _calendar("%Y%m%d")),
    _Unit("s", "Unix seconds", _YEAR_1971, _YEAR_2200, _scaled(1_000, 1)),
    _Unit("ms", "Unix milliseconds", _YEAR_1971 * 10**3, _YEAR_2200 * 10**3, _scaled(1, 1)),
    _Unit("yyyymmddhhmmss", "moments as yyyymmddhhmmss", 19_710_101_000_000, 22_000_101_000_000, _calendar("%Y%m%d%H%M%S")),
    _Unit("us", "Unix microseconds", _YEAR_1971 * 10**6, _YEAR_2200 * 10**6, _scaled(1, 1_000)),
    _Unit("ns", "Unix nanoseconds", _YEAR_1971 * 10**9, _YEAR_2200 * 10**9, _scaled(1, 1_000_000)),
)
"""In rising order of magnitude; no two overlap."""
_BY_NAME = {unit.name: unit for unit in UNITS}
UNIT_NAMES = tuple(_BY_NAME)
# yyyymmddhhmm would be milliseconds of 1976: neither is taken for the other.
_MINUTES = (197_101_010_000, 220_001_010_000)


@dataclass(slots=True)
class TimeFacts:
    """What the batches of a column must know of the whole column.

    Attributes:
        num_rows: that were looked at.
        is_int, is_float: of texts: all can be read as such a number.
        first: of texts: row 1, without blanks around it.
        odd: of texts: the first row that is a number where row 1 is none, or the other way round; its index and text.
        unit: of numbers: index of row 1's unit in UNITS, -1 for none.
        all_minutes: of numbers: all may be yyyymmddhhmm.
    """

    num_rows: int = 0
    is_int: bool = True
    is_float: bool = True
    first: str | None = None
    odd: tuple[int, str] | None = None
    unit: int | None = None
    all_minutes: bool = True

    def add(self, column: Any, place: Place) -> None:
        """Look at the next rows; what is wrong with a single cell is left to `read_times`. Raises EventFileError for no UTF-8."""
        column = plain(column)
        if is_textual(column.type):
            self._add_texts(pc.utf8_trim_whitespace(texts(column, place)))
        elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
            exact = pa.types.is_integer(column.type) and not pa.types.is_uint64(column.type)
            self._add_numbers(column.drop_null().cast(pa.int64() if exact else pa.float64(), safe=False))
        self.num_rows += len(column)

    def _add_texts(self, column: Any) -> None:
        is_said = pc.fill_null(pc.not_equal(column, ""), False)
        said = column.filter(is_said)
        if self.first is None and len(said):
            self.first = said[0].as_py()
        numeric = pc.if_else(is_said, pc.match_substring_regex(column, _NUMBER), None)
        if self.odd is None and self.first is not None:
            odd = pc.index(numeric, not _is_numeric(self.first)).as_py()
            if odd >= 0:
                self.odd = (self.num_rows + odd, column[odd].as_py())
        as_ints, as_floats = (_cast_or_none(said, kind) for kind in (pa.int64(), pa.float64()))
        self.is_int &= as_ints is not None
        self.is_float &= as_floats is not None
        numbers = as_ints if as_ints is not None else as_floats
        if numbers is not None:
            self._add_numbers(numbers)

    def _add_numbers(self, column: Any) -> None:
        numbers_N = np.asarray(column.to_numpy(zero_copy_only=False))
        if not len(numbers_N):
            return
        if self.unit is None:
            self.unit = int(_units(numbers_N[:1])[0])
        self.all_minutes &= bool(((numbers_N >= _MINUTES[0]) & (numbers_N < _MINUTES[1])).all())


def facts_of(batches: Iterable[Any], place: Place) -> TimeFacts:
    """Return the facts of a column that comes in batches. Raises EventFileError for a text that is no UTF-8."""
    facts = TimeFacts()
    for column in batches:
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            break  # the type says it all
        facts.add(column, replace(place, first_row=facts.num_rows))
    return facts


def _cast_or_none(column: Any, kind: Any) -> Any:
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        return None


def _is_numeric(text: str) -> bool:
    return bool(pc.match_substring_regex(pa.scalar(text), _NUMBER).as_py())


def read_times(column: Any, place: Place, unit: str | None = None, facts: TimeFacts | None = None) -> tuple[Int64Array, str]:
    """Return Unix milliseconds, int64 [N], and what the column was taken for.

    Args:
        column: a pyarrow array without dictionary.
        place: of the column.
        unit: one of UNIT_NAMES for a column of numbers; None: recognised.
        facts: of the whole column, where `column` is a batch of its rows; None: it is the whole column.
    Raises:
        EventFileError: a cell is empty, or cannot be read without guessing.
    """
    kind = column.type
    if column.null_count:
        raise place.fault(pc.index(column.is_null(), True).as_py(), None, f"is no time; {_ADVICE}")
    if pa.types.is_timestamp(kind):
        return _bounded(
            ticks_ms(column.cast(pa.int64()).to_numpy(zero_copy_only=False), kind.unit), column, place
        ), f"timestamp[{kind.unit}]"
    if pa.types.is_date(kind):
        days = pa.types.is_date32(kind)
        ticks_N = column.cast(pa.int32() if days else pa.int64()).to_numpy(zero_copy_only=False).astype(np.int64)
        return _bounded(ticks_N * (86_400_000 if days else 1), column, place), "dates"
    if facts is None:
        facts = TimeFacts()
        facts.add(column, place)
    if is_textual(kind):
        return _of_texts(texts(column, place), place, unit, facts)
    return _of_numbers(_numbers(column, place), place, unit, facts)


def ticks_ms(ticks_N: Int64Array, unit: str) -> Int64Array:
    """Return milliseconds of ticks of a unit ("s", "ms", "us", "ns"), rounded down; seconds beyond any calendar are cut."""
    return np.clip(ticks_N, -(10**15), 10**15) * _MS_OF[unit] if unit in _MS_OF else ticks_N // _PER_MS[unit]


def _bounded(ms_N: Int64Array, column: Any, place: Place) -> Int64Array:
    wrong_N = (ms_N < FIRST_MS) | (ms_N >= LAST_MS)
    if wrong_N.any():
        row = int(wrong_N.argmax())
        # A timestamp out of Python's range cannot be shown as one.
        raise place.fault(row, _spelled(column[row]), "is not between the years 1970 and 2199; leave the row out, or correct it")
    return ms_N


def _spelled(cell: Any) -> str:
    """Return a date or timestamp as text, also one that Python or pyarrow cannot spell."""
    try:
        return str(cell.cast(pa.string()))
    except pa.ArrowInvalid:
        return f"{cell.value} as {cell.type}"


def _numbers(column: Any, place: Place) -> npt.NDArray[Any]:
    kind = column.type
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        raise place.refusal(f"it is {kind}, which rounds today's Unix seconds to whole minutes; {_ADVICE}")
    if pa.types.is_integer(kind):
        if pa.types.is_uint64(kind) and pc.max(column).as_py() > np.iinfo(np.int64).max:
            raise place.refusal(f"it holds numbers beyond any time; {_ADVICE}")
        return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False))
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False))
    raise place.refusal(f"{kind} is no time; {_ADVICE}")


def _of_numbers(numbers_N: npt.NDArray[Any], place: Place, unit: str | None, facts: TimeFacts) -> tuple[Int64Array, str]:
    if not len(numbers_N):
        return np.zeros(0, np.int64), "nothing"
    finite_N = np.isfinite(numbers_N)
    if not finite_N.all():
        row = int((~finite_N).argmax())
        raise place.fault(row, numbers_N[row].item(), f"is no time; {_ADVICE}")
    known = _BY_NAME[unit] if unit is not None else _recognised(numbers_N, place, facts)
    inside_N = (numbers_N >= 0) & (numbers_N < known.end)
    ms_N = known.to_ms(np.where(inside_N, numbers_N, 0))
    wrong_N = ~inside_N | (ms_N < FIRST_MS)
    if wrong_N.any():
        row = int(wrong_N.argmax())
        raise place.fault(
            row, numbers_N[row].item(), f"is none of the {known.described} from 1970 to 2199; correct it, or leave the row out"
        )
    return ms_N, known.described


def _units(numbers_N: npt.NDArray[Any]) -> Int64Array:
    which_N = np.full(len(numbers_N), -1, np.int64)
    for index, unit in enumerate(UNITS):
        which_N[(numbers_N >= unit.first) & (numbers_N < unit.end)] = index
    return which_N


def _recognised(numbers_N: npt.NDArray[Any], place: Place, facts: TimeFacts) -> _Unit:
    which_N = _units(numbers_N)
    if (which_N < 0).any():
        row = int((which_N < 0).argmax())
        raise place.fault(row, numbers_N[row].item(), f"is no time from 1971 to 2199 in s, ms, us, ns or as yyyymmdd[hhmmss]; {_ADVICE}")
    of_first = int(which_N[0]) if facts.unit is None else facts.unit
    first = UNITS[of_first]
    if (which_N != of_first).any():
        row = int((which_N != of_first).argmax())
        other = UNITS[which_N[row]]
        raise place.fault(row, numbers_N[row].item(), f"looks like {other.described}, and row 1 like {first.described}; write one unit")
    if first.name == "ms" and facts.all_minutes:
        raise place.fault(0, numbers_N[0].item(), "may be yyyymmddhhmm, or milliseconds in 1976; write ISO 8601, or say --time-unit ms")
    return first


def _of_texts(column: Any, place: Place, unit: str | None, facts: TimeFacts) -> tuple[Int64Array, str]:
    column = pc.utf8_trim_whitespace(column)
    empty = pc.index(column, "").as_py()
    if empty >= 0:
        raise place.fault(empty, "", f"is no time; {_ADVICE}")
    if facts.is_int or facts.is_float:
        numbers = column.cast(pa.int64() if facts.is_int else pa.float64())
        return _of_numbers(np.asarray(numbers.to_numpy(zero_copy_only=False)), place, unit, facts)
    assert facts.first is not None
    if facts.odd is not None:
        row, text = facts.odd
        what = "is no number" if _is_numeric(facts.first) else "is a number"
        raise replace(place, first_row=0).fault(row, text, f"{what}, unlike row 1; write all times alike")
    encoded = column.dictionary_encode()
    codes_N = encoded.indices.to_numpy(zero_copy_only=False)
    distinct_ms, zoned = [], []
    for code, text in enumerate(encoded.dictionary.to_pylist()):
        try:
            moment_ms, has_zone = parse_moment(text)
        except ValueError as error:
            raise place.fault(int((codes_N == code).argmax()), text, f"{error}; {_ADVICE}") from error
        distinct_ms.append(moment_ms)
        zoned.append(has_zone)
    zoned_N = np.asarray(zoned, np.bool_)[codes_N]
    of_first = parse_moment(facts.first)[1]
    if (zoned_N != of_first).any():
        row = int((zoned_N != of_first).argmax())
        raise place.fault(
            row, column[row].as_py(), f"{'has a' if zoned_N[row] else 'has no'} zone, unlike row 1; write the zone in each row"
        )
    return np.asarray(distinct_ms, np.int64)[codes_N], "ISO 8601" if of_first else "ISO 8601 without zone, taken for UTC"


def parse_moment(text: str) -> tuple[int, bool]:
    """Return the Unix milliseconds of an ISO 8601 date or moment, and whether it states a zone; without one it is UTC.

    Raises:
        ValueError: it is none, or is not between 1970 and 2199; the message follows the text in a sentence.
    """
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise ValueError("is neither a number nor an ISO 8601 date or time (2024-12-31, 2024-12-31T10:20:30.5+02:00)")
    year, _, month, day, hour, minute, second, fraction, zone = found.groups()
    try:
        moment = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), tzinfo=_zone(zone))
    except ValueError as error:
        raise ValueError(f"is no date or time that there is ({error})") from error
    ms = round((moment - _EPOCH) / _SECOND) * 1000 + int(f"{fraction or ''}000"[:3])
    if not FIRST_MS <= ms < LAST_MS:
        raise ValueError("is not between the years 1970 and 2199")
    return ms, zone is not None


_EPOCH, _SECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(seconds=1)


def _zone(text: str | None) -> timezone:
    if text is None or text[0] not in "+-":
        return UTC
    digits = text[1:].replace(":", "")
    minutes = int(digits[:2]) * 60 + int(digits[2:] or 0)
    if int(digits[2:] or 0) > 59:
        raise ValueError("offset must have minutes from 00 to 59")
    return timezone(timedelta(minutes=-minutes if text[0] == "-" else minutes))
