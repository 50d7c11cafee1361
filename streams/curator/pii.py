"""Finds personal data in a text: e-mail addresses, telephone numbers, card numbers and IBANs. Pure.

Rules and check sums only: what has none (names, postal addresses) is not found. Where a number may be either, it counts as personal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

EMAIL, PHONE, CARD, IBAN = "email", "phone", "card", "iban"

_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}\b", re.IGNORECASE)
_CARD = re.compile(r"(?<!\d)(?:\d[ -]?){12,}\d(?!\d)")
_CARD_LENGTHS = range(13, 20)
# A run of digits and what separates them in telephone numbers.
_DIALLED = re.compile(r"(?<![\w.,])(?<!\d[ ()/-])(?:\+|00)?\(?\d(?:[ ()./-]{0,2}\d){6,14}(?!\w)(?![ ,()./-]{1,2}\d)")
_LOCAL = re.compile(r"(?<![\w-])\d{3}-\d{4}(?![\w-])")
_YEAR = re.compile(r"(?:19|20)\d\d")
_MIN_INTERNATIONAL, _MIN_SEPARATED, _MIN_SPACED, _MAX_DIGITS = 8, 9, 10, 15
_PLAIN = range(10, 12)


def kinds_in(text: str) -> frozenset[str]:
    """Return the kinds of personal data in a text: "email", "phone", "card", "iban"."""
    return frozenset(kind for kind, is_in in _CHECKS.items() if is_in(text))


def _has_card(text: str) -> bool:
    return any(_passes_luhn(number) for found in _matches(_CARD, text) for number in _card_numbers(found))


def _card_numbers(found: str) -> Iterator[str]:
    """Other numbers stand beside a card's, its expiry date say: every length is tried that begins and ends with a group of digits."""
    groups = re.split(r"[ -]", found)
    for start in range(len(groups)):
        joined = ""
        for group in groups[start : start + _CARD_LENGTHS.stop]:
            joined += group
            if len(joined) in _CARD_LENGTHS:
                yield joined


def _has_iban(text: str) -> bool:
    return any(_passes_mod97(prefix) for found in _matches(_IBAN, text) for prefix in _iban_prefixes(found))


def _has_phone(text: str) -> bool:
    return bool(_LOCAL.search(text)) or any(_is_dialled(found) for found in _matches(_DIALLED, text))


def _matches(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    return (match[0] for match in pattern.finditer(text))


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def _passes_luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B; a run of one digit passes too, and is no card."""
    doubled = [int(digit) * 2 for digit in digits[-2::-2]]
    total = sum(map(int, digits[-1::-2])) + sum(number - 9 if number > 9 else number for number in doubled)
    return total % 10 == 0 and len(set(digits)) > 1


def _iban_prefixes(found: str) -> Iterator[str]:
    """The words after an IBAN look like a part of it: every length that ends with a group is tried."""
    groups = re.split(r"[ -]", found.upper())
    for count in range(1, len(groups) + 1):
        joined = "".join(groups[:count])
        if 15 <= len(joined) <= 34:
            yield joined


def _passes_mod97(iban: str) -> bool:
    """ISO 13616: country and check digits to the end, letters as 10 to 35, remainder 1."""
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97 == 1


def _is_dialled(found: str) -> bool:
    """Tell a telephone number from a date, a list of years and a plain count."""
    digits = _digits(found)
    if len(digits) > _MAX_DIGITS:
        return False
    if found.startswith(("+", "00")):
        return len(digits) >= _MIN_INTERNATIONAL
    groups = re.findall(r"\d+", found)
    if len(groups) == 1:
        return len(digits) in _PLAIN
    if any(_YEAR.fullmatch(group) for group in groups):
        return False
    only_spaces = not re.search(r"[()./-]", found)
    return len(digits) >= (_MIN_SPACED if only_spaces else _MIN_SEPARATED)


_CHECKS: dict[str, Callable[[str], bool]] = {
    EMAIL: lambda text: bool(_EMAIL.search(text)),
    PHONE: _has_phone,
    CARD: _has_card,
    IBAN: _has_iban,
}
