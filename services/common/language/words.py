"""A text as words, whatever its script: what answers and wordings are compared by. Pure.

    Latin, Cyrillic, Arabic, Devanagari, …   what stands between blanks and punctuation
    Han, Hiragana                            each character; numerals that stand together are one, so "九天" is not in "十九天"
    Katakana                                 a run: "バス" is not in "バスケット"
    Thai, Lao, Khmer, Myanmar                each consonant with its vowels; Thai number words that stand together are one
    Hangul                                   what stands between blanks; an ending may follow (`hangul_stem_in`)

Signs that make another name belong to it: C++, C#, .NET, AT&T, node.js, snake_case, jane@example.com, -5, 10⁶, 1½. Numbers are compared
by value where writing differs only by habit: 1,000 is 1000, 0,60 is 0.60, Arabic, Thai and full-width digits are digits. Other signs
(%, €, +) are tokens of their own.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

WORD, SIGN, CLAUSE_END, SENTENCE_END, QUESTION_MARK = "word", "sign", "clause", "sentence", "question"

# NFKC writes 10⁶ as 106 and 1½ as 11⁄2: numbers that mean something else.
_KEPT_DECOMPOSITIONS = ("<super>", "<sub>", "<fraction>", "<circle>")
_NUMERALS = frozenset("〇零一二三四五六七八九十百千万萬亿億兆两兩廿卅壹贰貳叁參肆伍陆陸柒捌玖拾佰仟")
_HANGUL_ENDINGS = (
    "은 는 이 가 을 를 에 에는 에도 에만 에서 에서는 에게 의 도 만 만큼 로 으로 와 과 나 이나 까지 까지만 부터 마다 동안 간 이내 내 "
    "이다 다 입니다 입니다만 이에요 예요 이고 이며 라고 이라고 인 이었습니다 였습니다 이라 라 하고 이지만 지만 이죠 죠 이야 야 요 씩"
)
_ENDINGS = frozenset(_HANGUL_ENDINGS.split())
# Number words of two parts: "nine" is not said by "ninety-nine".
_TENS_WORDS = (
    "twenty thirty forty fifty sixty seventy eighty ninety vingt trente quarante cinquante soixante "
    "двадцать тридцать сорок пятьдесят шестьдесят семьдесят восемьдесят девяносто"
)
_UNIT_WORDS = (
    "one two three four five six seven eight nine un deux trois quatre cinq six sept huit neuf "
    "один одна два две три четыре пять шесть семь восемь девять"
)
_TENS, _UNITS = frozenset(_TENS_WORDS.split()), frozenset(_UNIT_WORDS.split())

# Classes: a lower, A upper, c letter without case, m mark, d digit, f number that is no digit, h Han, n Han numeral, g Hiragana,
# k Katakana, t Thai and the like, v vowel that is written before its consonant, w vowel behind it, o Hangul, s blank, b line break,
# p other sign. Signs that tokens are made of stand for themselves.
_OWN_SIGNS = frozenset(".,:;!?'&_@+#-%$()[]{}\"=<>*/")
_STANDING_SIGNS = frozenset("%‰°€$£¥₩₽₹&+=<>×÷±#@")
_SENTENCE_ENDS = frozenset(".!?。！？…।؟｡")
_QUESTION_MARKS = frozenset("?？؟՞")
_CLAUSE_ENDS = frozenset(",;:，；：、，؛،–—()[]{}（）「」『』“”«»\n")

_LETTERS = "aAc"
_TOKEN = re.compile(
    r"(?P<number>(?<![aAcdmhkngtvwof.)\]])-(?=d)d+(?:[.,:]d+)*f*)"
    r"|(?P<spaced>(?:(?<![aAcdmhkngtvwof.])\.(?=[aA]))?[aAcdf][aAcdmf]*"
    r"(?:(?:(?<=d)[.,:](?=d)|(?<=[aAcdm])[&_@](?=[aAcd])|(?<=[aAm])\.(?=a)|(?<=A)\.(?=A))[aAcdf][aAcdmf]*)*"
    r"(?:(?<=[aAm])(?:\+\+(?=d)|(?:\+\+?|#)(?![aAcd]))|(?<=[df])n+)?)"
    r"|(?P<numerals>n+)|(?P<han>[hg]m*)|(?P<katakana>k[km]*)|(?P<thai>v?[tw][wm]*)|(?P<hangul>o+)"
)
_THAI_NUMBERS = re.compile(
    r"(?:ศูนย์|หนึ่ง|เอ็ด|สอง|ยี่สิบ|สาม(?![\u0e30-\u0e3a\u0e45-\u0e4e])|สี่|ห้า(?!ม)|หก(?!ล้ม)|เจ็ด|แปด|เก้า(?!อี้)|สิบ|ร้อย|พัน(?!ธ)|หมื่น|แสน|ล้าน)+"
)
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_DECIMAL_COMMA = re.compile(r"-?\d{1,3},\d+")
_DATE = re.compile(r"\d{1,2}\.\d{1,2}\.\d{2,4}|\d{4}\.\d{1,2}\.\d{1,2}")
_HALF_WIDTH = re.compile("[\uff61-\uff9f]+")  # a mark of voice is a character of its own there
_CONTRACTED_NOT = re.compile(r"n't\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Token:
    """A word, a sign that stands for itself, or the end of a clause or sentence. `text` is folded: in one case, one form a character."""

    text: str
    kind: str
    joined: bool
    """Written without a blank between words, as Chinese is."""

    @property
    def is_hangul(self) -> bool:
        """Whether an ending may be a part of it."""
        return "\uac00" <= self.text[:1] <= "\ud7a3"


def compatible(text: str) -> str:
    """Return the text in compatibility form (NFKC), but for characters whose plain form means something else; invisible characters go.

    For comparing, never for showing: digits of all scripts become ASCII's, and typographic apostrophes and dashes plain ones.
    """
    if text.isascii():
        return text
    # Thai's SARA AM comes apart in NFKC, which is the same on both sides of a comparison.
    text = _HALF_WIDTH.sub(lambda run: unicodedata.normalize("NFKC", run[0]), unicodedata.normalize("NFC", text))
    return "".join(map(_compatible_char, text))


def folded(text: str) -> str:
    """Return the text as `compatible` does, with "isn't" as one word."""
    return _CONTRACTED_NOT.sub("nt", compatible(text))


def tokens_of(text: str) -> list[Token]:
    """Return the tokens of a text, in order."""
    tokens: list[Token] = []
    for token in _single_tokens(folded(text)):
        if tokens and token.text in _UNITS and tokens[-1].text in _TENS:
            tokens[-1] = Token(f"{tokens[-1].text}-{token.text}", WORD, joined=False)
        else:
            tokens.append(token)
    return tokens


def _single_tokens(text: str) -> Iterator[Token]:
    classes = "".join(map(_class_of, text))
    position = 0
    while position < len(text):
        number = _THAI_NUMBERS.match(text, position) if classes[position] in "tv" else None
        if number is not None:
            yield Token(number[0], WORD, joined=True)
            position = number.end()
            continue
        match = _TOKEN.match(classes, position)
        if match is None:
            yield from _ends_at(text, classes, position)
            position += 1
            continue
        piece = text[position : match.end()].casefold()
        joined = match.lastgroup not in ("spaced", "number", "hangul")
        yield from (Token(part, WORD, joined) for part in (_numbers(piece) if classes[position] in "d-" else (piece,)))
        position = match.end()


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text alone, folded."""
    return tuple(token.text for token in tokens_of(text) if token.kind == WORD)


def hangul_stem_in(stem: str, word: str) -> bool:
    """Say whether a Korean word is the stem with an ending, or the stem itself: 서울 in 서울에서, not in 서울대학교."""
    return word == stem or (word.startswith(stem) and word[len(stem) :] in _ENDINGS)


def _ends_at(text: str, classes: str, position: int) -> Iterator[Token]:
    """What a character outside of words is: the end of a clause or a sentence, a sign, or nothing."""
    char = text[position]
    if char in _QUESTION_MARKS:
        yield Token(char, QUESTION_MARK, joined=True)
    elif char == "." and classes[position + 1 : position + 2] not in ("", "s", "b", '"', ")", "'", "p", "*"):
        return
    elif char in _SENTENCE_ENDS:
        yield Token(char, SENTENCE_END, joined=True)
    elif char in _CLAUSE_ENDS:
        yield Token(char, CLAUSE_END, joined=True)
    elif char in _STANDING_SIGNS:
        yield Token(char, SIGN, joined=True)


def _numbers(piece: str) -> tuple[str, ...]:
    """A number by its value; 1983,1995 is two of them, since no number is written so, and a date is three."""
    if _DATE.fullmatch(piece):
        return tuple(piece.split("."))
    if "," not in piece:
        return (piece,)
    if _THOUSANDS.fullmatch(piece):
        return (piece.replace(",", ""),)
    if _DECIMAL_COMMA.fullmatch(piece):
        return (piece.replace(",", "."),)
    return tuple(piece.split(","))


@functools.lru_cache(maxsize=65_536)
def _compatible_char(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Cf":
        return ""
    if category == "Nd":
        return str(unicodedata.digit(char))
    if char in "\u2212\u2010\u2011\uff0d":
        return "-"
    if char in "‘’ʼ":
        return "'"
    if unicodedata.decomposition(char).startswith(_KEPT_DECOMPOSITIONS):
        return char
    return unicodedata.normalize("NFKC", char)


@functools.lru_cache(maxsize=65_536)
def _class_of(char: str) -> str:
    if char in _OWN_SIGNS:
        return char
    if char == "\n":
        return "b"
    if char.isspace():
        return "s"
    if char in _NUMERALS:
        return "n"
    category = unicodedata.category(char)
    if category in ("Mn", "Mc", "Me"):
        return "m"
    if category == "Nd":
        return "d"
    if category in ("No", "Nl"):
        return "f"
    return _letter_class(char, category) if category[0] == "L" else "p"


_RANGES = (
    ("\u0e40", "\u0e44", "v"),  # Thai
    ("\u0e30", "\u0e3a", "w"),
    ("\u0e45", "\u0e45", "w"),
    ("\u0ec0", "\u0ec4", "v"),  # Lao
    ("\u0eb0", "\u0ebd", "w"),
    ("\u0e00", "\u0eff", "t"),
    ("\u1000", "\u109f", "t"),  # Myanmar
    ("\u1780", "\u17ff", "t"),  # Khmer
    ("\u3041", "\u309f", "g"),
    ("\u30a1", "\u30ff", "k"),
    ("\uac00", "\ud7a3", "o"),
    ("\u3005", "\u3007", "h"),
    ("\u3400", "\u9fff", "h"),
    ("\uf900", "\ufaff", "h"),
    ("\U00020000", "\U0003ffff", "h"),
)


def _letter_class(char: str, category: str) -> str:
    for first, last, name in _RANGES:
        if first <= char <= last:
            return name
    return {"Lu": "A", "Lt": "A", "Ll": "a"}.get(category, "c")
