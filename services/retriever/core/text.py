"""The text of documents: cleaned without changing what it says, in the form that is searched, and its sentences. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from services.common.language.words import compatible

_LETTERS_PER_TOKEN = 6
_COUNTED = re.compile(r"[A-Za-z0-9]+|[^\W_]|[^\w\s]|_+")
_SPACES = re.compile(r"[ \t\f\v\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_BLANK_LINES = re.compile(r"\n\s*\n+")
# Control and format characters other than line breaks and tabs: soft hyphens, zero-width spaces, direction marks, NUL. The two joiners
# are letters' shapes in Persian and Hindi, and parts of emoji.
_INVISIBLE = frozenset({"Cc", "Cf", "Co", "Cs"})
_KEPT = frozenset("\n\t\u200c\u200d")
_ASCII_INVISIBLE = {code: None for code in range(128) if unicodedata.category(chr(code)) in _INVISIBLE and chr(code) not in _KEPT}
# Where a sentence ends: in scripts with blanks before one; in Chinese, Japanese, Hindi, Khmer, … after the sign; in Thai and Lao at a
# blank; everywhere at the end of a line.
_SENTENCE_END = re.compile(
    r"(?<![.!?…؟۔])[.!?…؟۔]++[\"'”’)\]»›]*+(?=\s)"
    r"|[。｡！？](?:[。｡！？!?…]*[」』”’）】》〉\])\"']*)"
    r"|[।॥။។።]+"
    r"|(?<=[\u0e00-\u0eff])(?= [\u0e00-\u0eff])"
    r"|(?=\n)"
)
_CHINESE = "\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef"
_BREAK_WITHIN_CHINESE = re.compile(rf"(?<=[{_CHINESE}])[ \t]{{0,64}}\n\s{{0,64}}(?=[{_CHINESE}])")
_LAYOUT = re.compile(r"\s+")
_GAP = re.compile(r"\s*")
# Inside a sentence that is too long, and has no blanks.
_CLAUSE_END = re.compile(r"(?<=[，、；：,;:])")


def clean(text: str) -> str:
    """Return the text as it is written, in composed form (NFC): no invisible characters, single blanks, at most one blank line.

    Nothing takes another meaning: 10⁶, 1½ and ！？ stay. `searchable` is for comparing.
    """
    if _is_plain(text):
        return text.strip()
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    if text.isascii():
        text = text.translate(_ASCII_INVISIBLE)
    else:
        text = "".join(char for char in text if char in _KEPT or unicodedata.category(char) not in _INVISIBLE)
    text = "\n".join(line.strip() for line in _SPACES.sub(" ", text).split("\n"))
    return unicodedata.normalize("NFC", _BLANK_LINES.sub("\n\n", text).strip())


def clean_code(text: str) -> str:
    """Return lines of code as they are written: indented, a tab as four blanks, without invisible characters and blank lines."""
    lines = (line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").expandtabs(4).split("\n"))
    kept = "\n".join("".join(char for char in line if unicodedata.category(char) not in _INVISIBLE) for line in lines if line)
    return unicodedata.normalize("NFC", kept)


def joined_lines(text: str) -> str:
    """Return text whose line breaks are its source's layout, as one line: a break between two Chinese or Japanese characters is nothing."""
    if _is_plain(text):
        return text
    return _LAYOUT.sub(" ", text if text.isascii() else _BREAK_WITHIN_CHINESE.sub("", text))


def _is_plain(text: str) -> bool:
    """Say whether a text has nothing to clean but its ends: true of most parts of most documents."""
    return text.isascii() and text.isprintable() and "  " not in text


def searchable(text: str) -> str:
    """Return the text for an embedder: one form for each character (ﬁ is fi, Ａ is A), but for 10⁶ and 1½."""
    return compatible(text)


def paragraphs_of(text: str) -> tuple[str, ...]:
    """Return the cleaned text's paragraphs: what blank lines part."""
    return tuple(paragraph for paragraph in clean(text).split("\n\n") if paragraph)


def num_tokens(text: str) -> int:
    """Estimate the tokens of a text, without a tokenizer, so that passages are the same whichever embedder is in use.

    A word counts one for every six letters begun, a sign one, a letter outside of ASCII one: 3 to 20 % above WordPiece for English text.
    """
    return sum(-(len(match) // -_LETTERS_PER_TOKEN) if match.isascii() else len(match) for match in _COUNTED.findall(text))


def sentences_of(paragraph: str) -> Iterator[tuple[str, str]]:
    """Yield each sentence with what stands before it in the paragraph: "", a blank, or a line break and the next line's indentation."""
    start, separator = 0, ""
    for end in (*(match.end() for match in _SENTENCE_END.finditer(paragraph)), len(paragraph)):
        sentence = paragraph[start:end]
        if sentence.strip():
            yield separator, sentence.strip()
            separator = ""
        gap = _GAP.match(paragraph, end)[0]  # type: ignore[index] # it matches everywhere
        separator = separator or (gap if "\n" in gap else " " if gap else "")
        start = max(start, end + len(gap))


def pieces_of(sentence: str, max_tokens: int) -> Iterator[tuple[str, str]]:
    """Yield parts of a sentence of at most so many tokens, each with what stands before it: cut between words if it can be."""
    if num_tokens(sentence) <= max_tokens:
        yield "", sentence
        return
    part, size, before = "", 0, ""
    for separator, word in _words_of(sentence, max_tokens):
        more = num_tokens(word)
        if part and size + more > max_tokens:
            yield before, part
            part, size, before = "", 0, separator
        part, size = f"{part}{separator}{word}" if part else word, size + more
    if part:
        yield before, part


def _words_of(sentence: str, max_tokens: int) -> Iterator[tuple[str, str]]:
    """Yield words; what has no blanks (Chinese, a hash, a URL) by its clauses, and these in slices of one token a letter at least."""
    for number, word in enumerate(sentence.split()):
        separator = " " if number else ""
        if len(word) <= max_tokens:
            yield separator, word
            continue
        for clause in _CLAUSE_END.split(word):
            start = 0
            while start < len(clause):
                end = _before_a_mark(clause, start + max_tokens) if len(clause) - start > max_tokens else len(clause)
                yield separator, clause[start:end]
                separator, start = "", end if end > start else len(clause)


def _before_a_mark(text: str, end: int) -> int:
    """The cut, moved back by a few characters so that no vowel or tone mark loses its consonant."""
    for earlier in range(end, max(end - 5, 1), -1):
        if unicodedata.category(text[earlier]) not in ("Mn", "Mc", "Me") and text[earlier] not in "\u0e30\u0e32\u0e33\u200c\u200d":
            return earlier
    return end
