"""Numbers that name one person: the rules of their issuers, check sums included. Pure; each function takes bare characters, no blanks."""

from __future__ import annotations

import datetime
import string

# ISO 13616: how long a country's IBAN is.
_IBAN_LENGTHS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18 "
    "FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 "
    "LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 "
    "ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20"
)
_LENGTH_OF = {entry[:2]: int(entry[2:]) for entry in _IBAN_LENGTHS.split()}
# GB/T 2260: the first two digits are a province.
_PROVINCE_CODES = "11 12 13 14 15 21 22 23 31 32 33 34 35 36 37 41 42 43 44 45 46 50 51 52 53 54 61 62 63 64 65 71 81 82 83 91"
_PROVINCES = frozenset(_PROVINCE_CODES.split())
_CARD_LENGTHS = {"3": (14, 15, 16), "4": (13, 16, 19), "5": (16,), "6": (16, 17, 18, 19), "2": (16,)}
_MASTERCARD_2 = range(2221, 2721)


def is_card(digits: str) -> bool:
    """Say whether a bank issues such numbers: the network's first digits and lengths, and Luhn's check digit (ISO/IEC 7812-1, annex B)."""
    if len(digits) not in _CARD_LENGTHS.get(digits[:1], ()) or len(set(digits)) == 1:
        return False
    if digits[0] == "2" and int(digits[:4]) not in _MASTERCARD_2:
        return False
    if len(digits) == 13 and is_ean(digits):
        return False  # few cards of 13 digits are left, and every article has such a number
    doubled = [int(digit) * 2 for digit in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(number - 9 if number > 9 else number for number in doubled)) % 10 == 0


def is_ean(digits: str) -> bool:
    """Say whether 13 digits are an article's number (GS1), ISBN among them."""
    return len(digits) == 13 and sum(int(digit) * (3 if index % 2 else 1) for index, digit in enumerate(digits)) % 10 == 0


def is_iban(characters: str) -> bool:
    """Say whether it is an IBAN: its country's length; country and check digits to the end, letters as 10 to 35, remainder 1."""
    if _LENGTH_OF.get(characters[:2]) != len(characters):
        return False
    return int("".join(str(int(character, 36)) for character in characters[4:] + characters[:4])) % 97 == 1


def is_chinese_id(characters: str) -> bool:
    """Say whether it is a resident's number (GB 11643): province, day of birth, the last of 18 characters checks (ISO 7064, mod 11-2)."""
    if characters[:2] not in _PROVINCES:
        return False
    if len(characters) == 15:
        return characters.isdecimal() and _is_day("19" + characters[6:12])
    if len(characters) != 18 or not characters[:17].isdecimal() or not _is_day(characters[6:14]):
        return False
    total = sum(int(digit) * pow(2, 17 - index, 11) for index, digit in enumerate(characters[:17]))
    return characters[17].upper() == "10X98765432"[total % 11]


def is_japanese_id(digits: str) -> bool:
    """Say whether 12 digits are an individual number (my number): weights 2 to 7 and 2 to 6 from the right, mod 11."""
    if len(digits) != 12:
        return False
    total = sum(int(digit) * (index % 6 + 2) for index, digit in enumerate(reversed(digits[:11])))
    return int(digits[11]) == (0 if total % 11 <= 1 else 11 - total % 11)


def is_german_tax_id(digits: str) -> bool:
    """Say whether 11 digits are a tax identification number: ISO 7064, mod 11, 10."""
    if len(digits) != 11 or digits[0] == "0":
        return False
    product = 10
    for digit in digits[:10]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return int(digits[10]) == (11 - product) % 10


def is_american_id(area: str, group: str, serial: str) -> bool:
    """Say whether it is a social security number: no part is zero, areas 666 and from 900 on are never given."""
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def is_korean_id(born: str, serial: str) -> bool:
    """Say whether it is a resident registration number: a day of birth, and a digit for century and sex."""
    return serial[0] in string.digits[1:9] and _is_day(("19" if serial[0] in "1256" else "20") + born)


def _is_day(yyyymmdd: str) -> bool:
    try:
        day = datetime.date(int(yyyymmdd[:4]), int(yyyymmdd[4:6]), int(yyyymmdd[6:]))
    except ValueError:
        return False
    return 1900 <= day.year <= 2099
