"""Which questions are the same but for a greeting, signs or a slip of the pen, in any script. Pure.

A question is *near* another when it holds all its words in their order, whatever stands before and after them: "Hi! How long may I keep
it, please?" is near "How long may I keep it?". A word may be misspelt, or parted by a blank. Another number or name makes another
question, and so do other words: paraphrases are what held-out questions are for. Where a script has no blanks, its characters are its
words.

Of many questions those are looked at that share most n-grams of characters with the one at hand (three of them, two where there are no
blanks).
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

import numpy as np

_SIGNS = re.compile(r"[\W_]+")
# Han, kana, Thai, Lao, Myanmar, Khmer: written without blanks between words.
_BLANKLESS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_RUNS = re.compile(f"(?P<blankless>[{_BLANKLESS}]+)|[^{_BLANKLESS}]+")
_WORDS = re.compile(f"[{_BLANKLESS}]|[^{_BLANKLESS} ]+")
_BLANK_BESIDE = re.compile(f"(?<=[{_BLANKLESS}]) +(?=[{_BLANKLESS}])")

_MAX_COMPARED = 50
# A slip in one word of five letters changes three n-grams on each of its sides.
_MISSING_GRAMS, _MISSING_SHARE = 6, 0.25
_MIN_MISSPELT = 5
_WORDS_PER_EXTRA = 5
_MIN_WORDS_CUT = 6


def normalised(text: str) -> str:
    """Return the words of a text in lower case, full-width forms and accents folded, parted by one blank where the script has blanks."""
    folded = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return _BLANK_BESIDE.sub("", _SIGNS.sub(" ", unicodedata.normalize("NFC", folded).casefold()).strip())


def grams_of(text: str) -> frozenset[str]:
    """Return the n-grams of a text: none of one that has neither letter nor digit."""
    grams: set[str] = set()
    for run in _RUNS.finditer(normalised(text)):
        words = run[0].strip()
        if run["blankless"]:
            grams.update(words[at : at + 2] for at in range(max(1, len(words) - 1)))
        elif words:
            padded = f" {words} "
            grams.update(padded[at : at + 3] for at in range(len(padded) - 2))
    return frozenset(grams)


class SimilarQuestions:
    """A set of questions that finds the one to which another is near."""

    def __init__(self, questions: Iterable[str] = ()) -> None:
        """Take them in."""
        self._words: list[list[str]] = []
        self._sizes = array("q")
        self._rows_by_gram: dict[str, array[int]] = {}
        self._rows_by_text: dict[str, int] = {}
        for question in questions:
            self.add(question)

    def __len__(self) -> int:
        return len(self._words)

    def add(self, question: str) -> int:
        """Take one in and return its number, counted from 0."""
        row, text, grams = len(self), normalised(question), grams_of(question)
        self._words.append(_WORDS.findall(text))
        self._sizes.append(len(grams))
        self._rows_by_text.setdefault(text, row)
        for gram in grams:
            self._rows_by_gram.setdefault(gram, array("q")).append(row)
        return row

    def find(self, question: str) -> int | None:
        """Return the number of the question to which this one is near, the nearest of several; None when there is none."""
        text = normalised(question)
        same = self._rows_by_text.get(text)
        rows = [self._rows_by_gram[gram] for gram in grams_of(text) if gram in self._rows_by_gram]
        if same is not None or not rows:
            return same if text else None
        common_R = np.bincount(np.concatenate([np.frombuffer(each, dtype=np.int64) for each in rows]), minlength=len(self))
        sizes_R = np.array(self._sizes, dtype=np.int64)
        missing_R = sizes_R - common_R
        candidates_R = np.flatnonzero((missing_R <= np.maximum(_MISSING_GRAMS, _MISSING_SHARE * sizes_R)) & (common_R > 0))
        words = _WORDS.findall(text)
        for row in candidates_R[np.argsort(missing_R[candidates_R], kind="stable")][:_MAX_COMPARED]:
            if _holds(words, self._words[row]):
                return int(row)
        return None


def _holds(words: Sequence[str], held: Sequence[str]) -> bool:
    """Say whether `words` has all of `held`, in order, but for misspellings and few words in between."""
    if not held:
        return False
    num_extra, num_cut, end = 0, 0, len(held)
    for what, held_from, held_to, from_, to in SequenceMatcher(None, held, words, autojunk=False).get_opcodes():
        mine, others = held[held_from:held_to], words[from_:to]
        if what == "replace" and not _are_misspelt(mine, others):
            return False
        if what == "insert" and 0 < held_from < end:
            num_extra += len(others)
            if any(word.isdigit() for word in others):
                return False
        if what == "delete":
            num_cut += len(mine)
            if end < _MIN_WORDS_CUT or not (held_from == 0 or held_to == end) or any(word.isdigit() for word in mine):
                return False
    return num_cut <= 1 and num_extra * _WORDS_PER_EXTRA <= end


def _are_misspelt(left: Sequence[str], right: Sequence[str]) -> bool:
    """Say whether the words are the same but for blanks, or one letter of a longer word."""
    one, other = "".join(left), "".join(right)
    if one == other:
        return True
    if len(left) != len(right) or min(len(one), len(other)) < _MIN_MISSPELT or any(char.isdigit() for char in one + other):
        return False
    return all(_is_a_slip(mine, its) for mine, its in zip(left, right, strict=True))


def _is_a_slip(one: str, other: str) -> bool:
    """One letter too many, too few or another, or two that changed places, in a word of some length."""
    if one == other:
        return True
    if min(len(one), len(other)) < _MIN_MISSPELT or abs(len(one) - len(other)) > 1:
        return False
    first = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    tails = [(one[first + 1 :], other[first + 1 :]), (one[first + 1 :], other[first:]), (one[first:], other[first + 1 :])]
    swapped = one[first : first + 2] == other[first : first + 2][::-1] and one[first + 2 :] == other[first + 2 :]
    return swapped or any(a == b for a, b in tails)
