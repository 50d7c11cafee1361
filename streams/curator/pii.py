"""Finds personal data in a text of any script: e-mail addresses, telephone, card and identity numbers, IBANs. Pure.

Rules, check sums and the words beside a number: what has none (names, postal addresses) is not found. The text is brought into one form for
matching only: digits, signs and blanks of all kinds as ASCII, a blank where Chinese, Japanese, Korean or Thai text meets a number. Where a
number may be a telephone number it counts as one, unless what stands before it says that it is an order's, an article's or the like.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from services.common.language.words import folded
from streams.curator.personal_numbers import (
    is_american_id,
    is_card,
    is_chinese_id,
    is_ean,
    is_german_tax_id,
    is_iban,
    is_japanese_id,
    is_korean_id,
)

EMAIL, PHONE, CARD, IBAN, IDENTITY = "email", "phone", "card", "iban", "identity"

_JOINED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\u3005-\u3007"
_SCRIPT_MEETS_NUMBER = re.compile(rf"(?<=[{_JOINED}])(?=[A-Za-z0-9+(])|(?<=[A-Za-z0-9)])(?=[{_JOINED}])")
_BLANKS = re.compile(r"[^\S\n]")
_DASHES = re.compile(r"[\u2012-\u2015\u2e3a\u2e3b\ufe58\ufe63~]|(?<=\d)[ーｰ一](?=\d)")
_SPELT = re.compile("[〇零一二三四五六七八九幺]{10,}")
_SPELT_DIGITS = str.maketrans("〇零一二三四五六七八九幺", "001234567891")

_EMAIL = re.compile(r"[\w.+-]{1,64}@(?!\dx\.)[\w-]{1,63}(?:\.[\w-]{1,63}){0,7}\.[^\W\d_]{2,24}")
_HIDDEN_EMAIL = re.compile(
    r"[\w.+-]{1,64} ?[(\[{] ?(?:at|@|ät|klammeraffe) ?[)\]}] ?[\w-]{1,63}"
    r"(?:(?:\.| ?[(\[{] ?(?:dot|punkt|\.) ?[)\]}] ?)[\w-]{1,63}){1,4}",
    re.IGNORECASE,
)
_URL = re.compile(r"https?://(?!wa\.me|api\.whatsapp)\S{1,2000}", re.IGNORECASE)
_DATE = re.compile(r"(?<![\d.])(?:\d{1,2}([./-])\d{1,2}\1(?:19|20)\d\d|(?:19|20)\d\d([./-])\d{1,2}\2\d{1,2})(?![\d]|\.\d)")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}\b", re.IGNORECASE)
_CARD = re.compile(r"(?<!\w)(?<!\d[.,])(?:\d[ -]?){12,}\d(?!\w)")
_LONGEST_CARD = 19
_CHINESE_ID = re.compile(r"(?<![0-9A-Za-z])(?:\d{6}[ -]?\d{8}[ -]?\d{3}[ -]?[\dXx]|\d{15})(?![0-9A-Za-z])")
_AMERICAN_ID = re.compile(r"(?<![\w-])(\d{3})-(\d{2})-(\d{4})(?![\w-])")
_KOREAN_ID = re.compile(r"(?<![\w-])(\d{6})-(\d{7})(?![\w-])")
_NUMBER = re.compile(r"(?<![\w.])\d(?:[ ./-]?\d){10,11}(?!\w)")
_PASSPORT = re.compile(r"(?<!\w)[A-Z]{1,2}\d{6,8}(?!\w)|(?<!\w)[CFGHJKLMNPRTVWXYZ][A-Z0-9]{7,8}\d(?!\w)", re.IGNORECASE)

# A run of digits and what separates them in telephone numbers.
_DIALLED = re.compile(
    r"(?<!\w)(?<!\d[.,])(?<!\d[ ()/-])(?<![0-9a-f]-)(?:\(?\+ ?|00)?\(?\d(?:[ ()./-]{0,3}\d){5,14}(?![^\W_])(?![ ()./-]{1,2}\d)(?!,\d)"
)
_PLAIN = re.compile(r"(?<![\w.,+-])\d{10,12}(?![\w-])(?![.,]\d)")
_LOCAL = re.compile(r"(?<![\w-])\d{3}-\d{4}(?![\w-])")
_YEAR = re.compile(r"(?:19|20)\d\d(?:(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{0,2})?")
_AMERICAN = re.compile(r"1?[2-9]\d\d[2-9]\d{6}")
_CHINESE_MOBILE = re.compile(r"(?:86)?1[3-9]\d{9}")
_MIN_DIGITS, _MIN_INTERNATIONAL, _MIN_SEPARATED, _MAX_DIGITS = 6, 8, 9, 15

_BEFORE_CHARS = 48
_FILLER = (
    r"(?:[\s:#*=.,'\"(\[-]|number|num|no|nr|nummer|id|code|is|ist|lautet|me|us|him|her|at|under|unter|auf|on|my|the|please|back|mir|uns|an"
    r"|号码|号碼|號碼|号|號|编号|編號|番号|コード|是|为|為|は|が|を|の|に|まで|请|請|：|こちら|我的|私の)*"
)
_DIALLED_WORDS = (
    r"tel|telefon(?:nummer)?|telephone|phone|mobile?|mobil(?:nummer|telefon)|handy(?:nummer)?|cell|call|dial|fax|whatsapp|wechat|qq"
    r"|festnetz|rufnummer|ruf|rufen sie|anrufen|erreichbar|hotline|sms|电话|電話|手机|手機|致电|致電|拨打|撥打|联系方式|联系|传真|座机"
    r"|微信|微信号|携帯|ファックス|連絡先|☎|📞|📱"
)
_OTHER_WORDS = (
    r"orders?|invoice|receipt|tracking|shipment|parcel|package|ref|reference|ticket|case|serial|sku|articles?|items?|part|product"
    r"|isbn(?:-?1[03])?|issn|ean|jan|gtin|upc|barcode|version|build|release|model|doi|arxiv|pmid|timestamp|commit|pages?|customer|batch"
    r"|lot|request|transaction|booking|bestellung|auftrag|rechnung|sendung|artikel|vorgang|aktenzeichen|zeichen|fassung|seiten?"
    r"|(?:bestell|auftrags|rechnungs|sendungs|artikel|vorgangs|kunden|serien|chargen|buchungs|trackings?|paket|referenz|beleg|vertrags"
    r"|mitglieds)-?(?:nummern?|nr|id|code)"
    r"|订单|訂單|单号|單號|运单|快递|物流|发票|发票号码|序列|流水|型号|型號|版本|批|商品|货|条码|邮编|浏览量|工单|编号|编码|合同|票"
    r"|注文|伝票|追跡|請求書?|型番|製造|お問い合わせ|受付|整理|品番|郵便|〒|バージョン|管理|予約|会員"
)
_IS_DIALLED = re.compile(rf"(?:(?<![^\W\d_])|(?<=[{_JOINED}]))(?:{_DIALLED_WORDS}){_FILLER}$", re.IGNORECASE)
_IS_OTHER = re.compile(rf"(?:(?<![^\W\d_])|(?<=[{_JOINED}]))(?:{_OTHER_WORDS}){_FILLER}$|[#$€£¥₩₽]\s?$", re.IGNORECASE)
_IS_COUNTED = re.compile(
    r"\s?(?:[€$£¥%]|(?:元|円|块|日元|人民币|人|次|个|個|件|名|万|萬|亿|億|字|条|種|回|字节|EUR|USD|CNY|RMB|JPY|CHF|euros?|dollars?|yen"
    r"|[Bb]ytes?|users?|Nutzer|views|people|inhabitants|Einwohner|Zeichen|rows|Zeilen|ms|km|kg|MB|GB|kWh)(?![^\W\d_]))"
)
_IS_IDENTITY = {
    "japanese": re.compile(rf"(?:マイナンバー|個人番号|my ?number){_FILLER}$", re.IGNORECASE),
    "german": re.compile(rf"(?:steuer-?(?:id|ident\w*)|identifikationsnummer|idnr\.?|tin){_FILLER}$", re.IGNORECASE),
    "passport": re.compile(
        rf"(?:passport|reisepass|ausweis(?:nummer)?|personalausweis(?:nummer)?|护照|護照|パスポート|旅券){_FILLER}$", re.IGNORECASE
    ),
}


def kinds_in(text: str) -> frozenset[str]:
    """Return the kinds of personal data in a text: "email", "phone", "card", "iban", "identity"."""
    plain = _plain(text)
    return frozenset(kind for kind, is_in in _CHECKS.items() if is_in(plain))


def _plain(text: str) -> str:
    """The text in one form, for matching alone."""
    text = _BLANKS.sub(" ", _DASHES.sub("-", folded(text)))
    text = _SPELT.sub(lambda run: run[0].translate(_SPELT_DIGITS), text)
    return _SCRIPT_MEETS_NUMBER.sub(" ", text)


def _has_email(text: str) -> bool:
    return bool(_EMAIL.search(text) or _HIDDEN_EMAIL.search(text))


def _has_card(text: str) -> bool:
    return any(
        is_card(number)
        for found in _CARD.finditer(text)
        if not _IS_OTHER.search(_before(found))
        for number in _joined_groups(found[0], _LONGEST_CARD)
    )


def _has_iban(text: str) -> bool:
    """The words behind an IBAN look like a part of it: every length that ends with a group is tried."""
    for found in _IBAN.finditer(text):
        groups = re.split(r"[ -]", found[0].upper())
        if any(is_iban("".join(groups[:count])) for count in range(1, len(groups) + 1)):
            return True
    return False


def _has_identity(text: str) -> bool:
    if any(is_chinese_id(re.sub("[ -]", "", found[0])) and not _IS_OTHER.search(_before(found)) for found in _CHINESE_ID.finditer(text)):
        return True
    if any(is_american_id(*found.groups()) and not _IS_OTHER.search(_before(found)) for found in _AMERICAN_ID.finditer(text)):
        return True
    if any(is_korean_id(*found.groups()) for found in _KOREAN_ID.finditer(text)):
        return True
    if any(_IS_IDENTITY["passport"].search(_before(found)) for found in _PASSPORT.finditer(text)):
        return True
    return any(
        (is_japanese_id(_digits(found[0])) and _IS_IDENTITY["japanese"].search(_before(found)))
        or (is_german_tax_id(_digits(found[0])) and _IS_IDENTITY["german"].search(_before(found)))
        for found in _NUMBER.finditer(text)
    )


def _has_phone(text: str) -> bool:
    text = _DATE.sub("\n", _URL.sub("\n", text))
    found = (match for pattern in (_DIALLED, _PLAIN, _LOCAL) for match in pattern.finditer(text))
    return any(_is_dialled(match) for match in found)


def _before(found: re.Match[str]) -> str:
    return found.string[max(0, found.start() - _BEFORE_CHARS) : found.start()]


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def _joined_groups(found: str, longest: int) -> Iterator[str]:
    """Other numbers stand beside a card's, its expiry date say: every length is tried that begins and ends with a group of digits."""
    groups = re.split(r"[ -]", found)
    for start in range(len(groups)):
        joined = ""
        for group in groups[start : start + longest]:
            joined += group
            if len(joined) > longest:
                break
            yield joined


def _is_dialled(found: re.Match[str]) -> bool:
    """Tell a telephone number from a date, a count, a version, and a number that something else is called by."""
    number, digits, before = found[0], _digits(found[0]), _before(found)
    if not _MIN_DIGITS <= len(digits) <= _MAX_DIGITS:
        return False
    if number.lstrip("(").startswith("+"):
        return len(digits) >= _MIN_INTERNATIONAL
    if _IS_DIALLED.search(before):
        return True
    if _IS_OTHER.search(before) or _IS_COUNTED.match(found.string, found.end()):
        return False
    groups = re.findall(r"\d+", number)
    if number.startswith("00"):
        return len(digits) >= _MIN_INTERNATIONAL + 2
    if len(groups) == 1:
        return _is_plain(digits)
    if found.re is _LOCAL:
        return groups[0] >= "200" and not groups[1].endswith("00") and not _YEAR.fullmatch(groups[1])
    return len(digits) >= _MIN_SEPARATED and not _counts_something(number, digits, groups)


def _is_plain(digits: str) -> bool:
    """Without anything between its digits: as a country's numbers are."""
    if _YEAR.fullmatch(digits):
        return False
    if 10 <= len(digits) <= 12 and digits[0] == "0":
        return True
    return bool(_CHINESE_MOBILE.fullmatch(digits) or (len(digits) in (10, 11) and _AMERICAN.fullmatch(digits)))


def _counts_something(number: str, digits: str, groups: list[str]) -> bool:
    """Whether digits in groups are years, thousands, a version, an address of a network, a book's number or a row of small numbers."""
    if digits[0] == "0" and len(groups[0]) > 1:
        return False
    separators = set(re.findall(r"[^\d]", number))
    if any(_YEAR.fullmatch(group) for group in groups) or is_ean(digits):
        return True
    if max(map(len, groups)) <= 2 or (len(groups[0]) <= 3 and {len(group) for group in groups[1:]} == {3}):
        return True
    if separators == {"."}:
        return not (_AMERICAN.fullmatch(digits) and [len(group) for group in groups[-3:]] == [3, 3, 4])
    return separators == {" "} and len(digits) == _MIN_SEPARATED and len(groups) == 2


_CHECKS: dict[str, Callable[[str], bool]] = {
    EMAIL: _has_email,
    PHONE: _has_phone,
    CARD: _has_card,
    IBAN: _has_iban,
    IDENTITY: _has_identity,
}
