"""A number in a cell of Excel -> what is shown: 0.5 as "50%", 1234.5 as "1,234.50 €", 45383 as "2024-04-01". Pure.

Dates and times are written as ISO 8601, whatever order their format has: the same in every country. Formats of fractions and powers are
shown as the plain number.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal

GENERAL = "General"

# Formats that a file names by number alone (ECMA-376 part 1, 18.8.30). 27 to 36 and 50 to 58 are dates in East Asian versions.
_BUILT_IN = {
    **{1: "0", 2: "0.00", 3: "#,##0", 4: "#,##0.00", 9: "0%", 10: "0.00%", 14: "yyyy-mm-dd", 15: "d-mmm-yy", 16: "d-mmm", 17: "mmm-yy"},
    **{18: "h:mm AM/PM", 19: "h:mm:ss AM/PM", 20: "h:mm", 21: "h:mm:ss", 22: "yyyy-mm-dd h:mm", 37: "#,##0;-#,##0", 38: "#,##0;-#,##0"},
    **{39: "#,##0.00;-#,##0.00", 40: "#,##0.00;-#,##0.00", 41: "#,##0", 42: "#,##0", 43: "#,##0.00", 44: "#,##0.00", 45: "mm:ss"},
    **{46: "[h]:mm:ss", 47: "mm:ss.0", 49: "@"},
    **dict.fromkeys((*range(27, 37), *range(50, 59)), "yyyy-mm-dd"),
}
# Quoted text, an escaped sign, a blank as wide as a sign, a filling sign, [colour], [condition] or [$currency-language].
_LITERAL = re.compile(r'"(?P<quoted>[^"]*)"|\\(?P<escaped>.)|_.|\*.|\[\$(?P<currency>[^\]-]*)(?:-[^\]]*)?\]|\[(?P<bracket>[^\]]*)\]')
_CONDITION = re.compile(r"\[(<=|>=|<>|<|>|=)(-?\d+(?:\.\d+)?)\]")
_COMPARED: Mapping[str, Callable[[Decimal, Decimal], bool]] = {
    "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge, "=": operator.eq, "<>": operator.ne
}  # fmt: skip
_ELAPSED = re.compile(r"h+|m+|s+", re.IGNORECASE)
_DIGITS = re.compile(r"[#0?][#0?,]*(?:\.[#0?]*,*)?|\.[#0?]+,*")
# One letter stands for each literal while digits are looked for.
_FIRST_SHOWN = 0xE000
_SHOWN = re.compile("[\ue000-\uf8ff]")
_MAX_CODE_CHARS = 1_000
_SECONDS_A_DAY = 86_400
_MAX_SERIAL = 2_958_465
"""9999-12-31."""
_MAX_DECIMALS = 12
_MAX_DIGITS = 15


def format_of(number: int, own: dict[int, str]) -> str:
    """Return the format code of a number; `own`: those that the workbook defines."""
    return own.get(number) or _BUILT_IN.get(number, GENERAL)


def shown(value: str, code: str, *, from_1904: bool) -> str:
    """Return a number as its cell shows it.

    Args:
        value: as the file has it, e.g. "0.30000000000000004"; what is no number is returned as it is.
        code: a format code of Excel.
        from_1904: whether the workbook's days are counted from 1904.
    """
    if code == GENERAL and value.isdecimal() and len(value) <= _MAX_DIGITS:
        return value.lstrip("0") or "0"
    try:
        number = Decimal(value)
    except ArithmeticError:
        return value
    if not number.is_finite():
        return value
    section, is_negative_section = _section_of(code, number)
    bare, literals, is_time = _parsed(section)
    if code == GENERAL or bare.strip().lower() in ("general", "@", ""):
        return plain(number) if bare or not section or code == GENERAL else _put_back(bare, literals)
    if is_time:
        return _date(number, bare, from_1904=from_1904) or plain(number)
    if "/" in bare or re.search(r"[eE][+-]", bare):
        return plain(number)
    return _number(number, bare, literals, signed=not is_negative_section)


def plain(number: Decimal) -> str:
    """Return a number with the 15 digits that Excel knows, without a power where it can be."""
    rounded = Decimal(f"{number:.14e}")
    if rounded and not -10 < rounded.adjusted() < 20:
        return f"{float(rounded):.15g}"
    text = f"{rounded:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


@functools.lru_cache(maxsize=1_024)
def _parsed(section: str) -> tuple[str, tuple[str, ...], bool]:
    """Return a section with a letter in place of each literal, the literals, and whether it shows a time."""
    literals: list[str] = []
    bare = _LITERAL.sub(lambda found: _kept(found, literals), section)
    return bare, tuple(literals), _is_time(bare)


@functools.lru_cache(maxsize=1_024)
def _sections(code: str) -> tuple[str, ...]:
    return tuple(re.split(r';(?=(?:[^"]*"[^"]*")*[^"]*$)', _SHOWN.sub("", code[:_MAX_CODE_CHARS])))


def _section_of(code: str, number: Decimal) -> tuple[str, bool]:
    """Return the part of a code that is for this number, and whether it writes the sign itself.

    Up to four: > 0; < 0; 0; text. With conditions it is the first whose condition holds, or that has none.
    """
    sections = _sections(code)
    conditions = [_CONDITION.search(section) for section in sections]
    if any(conditions):
        for section, condition in zip(sections, conditions, strict=True):
            if condition is None or _COMPARED[condition[1]](number, Decimal(condition[2])):
                # One that is for numbers below 0 alone has their sign, if any.
                return section, condition is not None and condition[1] in ("<", "<=") and Decimal(condition[2]) <= 0
        return sections[-1], False
    if number < 0 and len(sections) > 1:
        return sections[1], True
    if number == 0 and len(sections) > 2:
        return sections[2], False
    return sections[0], False


def _kept(found: re.Match[str], literals: list[str]) -> str:
    bracket = found["bracket"]
    if bracket is not None:
        return f"[{bracket}]" if _ELAPSED.fullmatch(bracket) else ""
    text = found["quoted"] or found["escaped"] or found["currency"] or ""
    if not text:
        return ""
    literals.append(text)
    return chr(_FIRST_SHOWN + len(literals) - 1)


def _put_back(text: str, literals: Sequence[str]) -> str:
    return _SHOWN.sub(lambda found: literals[ord(found[0]) - _FIRST_SHOWN], text).strip()


def _is_time(bare: str) -> bool:
    # A format that shows digits may have letters of a currency that nobody quoted.
    without = _SHOWN.sub("", bare)
    return bool(re.search(r"[ymdhs]", without, re.IGNORECASE)) and not re.search(r"[#?]|0(?!0*$)", re.sub(r"s\.0+", "s", without))


def _date(number: Decimal, bare: str, *, from_1904: bool) -> str:
    """Return a date, a time or a duration as ISO 8601; empty when the number is none."""
    text = _SHOWN.sub("", bare).lower()
    if not 0 <= number <= _MAX_SERIAL:
        return ""
    # To the millisecond: a day's parts are binary fractions.
    seconds = float(round(number * _SECONDS_A_DAY, 3))
    if "[" in text:
        whole = round(seconds)
        return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    # Excel believes that 1900 had a 29th of February.
    first = datetime(1904, 1, 1) if from_1904 else datetime(1899, 12, 30) if number >= 61 else datetime(1899, 12, 31)
    moment = first + timedelta(seconds=round(seconds))
    has_time = bool(re.search(r"[hs]", text))
    time = moment.strftime("%H:%M:%S" if moment.second else "%H:%M")
    if not re.search(r"[yd]", text) and (has_time or "m" not in text):
        return time
    if not re.search(r"d", text) and not has_time and "y" in text:
        return moment.strftime("%Y-%m") if "m" in text else moment.strftime("%Y")
    return f"{moment:%Y-%m-%d}{f' {time}' if has_time else ''}"


def _number(number: Decimal, bare: str, literals: Sequence[str], *, signed: bool) -> str:
    found = _DIGITS.search(bare)
    if found is None:
        return _put_back(bare, literals) or plain(number)
    # A comma at the end divides by a thousand, one inside parts thousands.
    digits = found[0].rstrip(",")
    whole, _, decimals = digits.partition(".")
    scale = len(found[0]) - len(digits)
    size = abs(number) / (1000**scale) * (100 ** bare.count("%"))
    places = min(len(decimals), _MAX_DECIMALS)
    # Halves go up, as Excel rounds, from the 15 digits that it knows.
    if size.adjusted() >= _MAX_DIGITS:
        return plain(number)
    rounded = Decimal(f"{size:.14e}").quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
    before, _, after = (f"{rounded:,f}" if "," in whole else f"{rounded:f}").partition(".")
    least = decimals.rstrip("#?").count("0")
    after = after[:least] + after[least:].rstrip("0")
    text = before.rjust(whole.count("0"), "0") + (f".{after}" if after else "")
    sign = "-" if signed and number < 0 and rounded else ""
    return sign + _put_back(bare[: found.start()] + text + bare[found.end() :], literals)
