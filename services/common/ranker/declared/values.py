"""What operators take and give: columns of numbers, and columns of words, any number of them a row.

Shapes: N rows, D numbers a row, S words of all rows one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Numbers:
    """D numbers a row; NaN is an absent one."""

    values_ND: Float64Array

    def __len__(self) -> int:
        return len(self.values_ND)

    @property
    def width(self) -> int:
        """D."""
        return int(self.values_ND.shape[1])

    @property
    def absent_N(self) -> npt.NDArray[np.bool_]:
        """Whether a row lacks any of its numbers: half a vector is none."""
        return np.asarray(np.isnan(self.values_ND).any(axis=1), dtype=np.bool_)

    def take(self, rows_B: Int64Array) -> Numbers:
        """Return the rows of these places."""
        return Numbers(self.values_ND[rows_B])


@dataclass(frozen=True, slots=True)
class Words:
    """Row r has the words `vocabulary[code]` of `codes_S[offsets[r]:offsets[r + 1]]`; a row without any is absent.

    The vocabulary holds each word once, and perhaps words that no row has.
    """

    codes_S: Int64Array
    offsets: Int64Array
    """int64 [N + 1], from 0 to S."""
    vocabulary: tuple[str, ...]

    @classmethod
    def of(cls, rows: Sequence[Iterable[str]]) -> Words:
        """Return the column of these rows."""
        code_of: dict[str, int] = {}
        codes: list[int] = []
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        for at, words in enumerate(rows, 1):
            codes += [code_of.setdefault(word, len(code_of)) for word in words]
            offsets[at] = len(codes)
        return cls(np.asarray(codes, dtype=np.int64), offsets, tuple(code_of))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts_N(self) -> Int64Array:
        """Words of each row."""
        return np.diff(self.offsets)

    @property
    def rows_S(self) -> Int64Array:
        """The row of each word."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.counts_N)

    def take(self, rows_B: Int64Array) -> Words:
        """Return the rows of these places, with no more vocabulary than they need where that is the shorter one."""
        starts_B = self.offsets[rows_B]
        picked_S, offsets = stretches(starts_B, self.offsets[rows_B + 1] - starts_B)
        codes_S = self.codes_S[picked_S]
        if len(self.vocabulary) <= len(codes_S):
            return Words(codes_S, offsets, self.vocabulary)
        # Operators look at each word of a vocabulary: that of all items, for the candidates of one request.
        used, codes_S = np.unique(codes_S, return_inverse=True)
        return Words(codes_S.astype(np.int64), offsets, tuple(self.vocabulary[code] for code in used.tolist()))

    def expanded(self, of: Callable[[str], Sequence[str]]) -> Words:
        """Return a column with the words `of(word)` in place of each word."""
        parts = Words.of([of(word) for word in self.vocabulary])
        picked, ends = stretches(parts.offsets[self.codes_S], parts.counts_N[self.codes_S])
        return Words(parts.codes_S[picked], ends[self.offsets], parts.vocabulary)

    def first(self, most: int) -> Words:
        """Return a column with at most `most` words a row, the first ones."""
        if not len(self.codes_S) or self.counts_N.max() <= most:
            return self
        picked_S, offsets = stretches(self.offsets[:-1], np.minimum(self.counts_N, most))
        return Words(self.codes_S[picked_S], offsets, self.vocabulary)

    def filled(self, word: str) -> Words:
        """Return a column in which absent rows have this word."""
        counts_N = self.counts_N
        if counts_N.all():
            return self
        code = self.vocabulary.index(word) if word in self.vocabulary else len(self.vocabulary)
        codes_S = np.insert(self.codes_S, self.offsets[:-1][counts_N == 0], code)
        offsets = np.concatenate(([0], np.cumsum(np.maximum(counts_N, 1))))
        return Words(codes_S, offsets, self.vocabulary if code < len(self.vocabulary) else (*self.vocabulary, word))

    def lists(self) -> list[list[str]]:
        """Return the words of each row."""
        words = [self.vocabulary[code] for code in self.codes_S.tolist()]
        ends = self.offsets.tolist()
        return [words[begin:end] for begin, end in pairwise(ends)]


Column = Numbers | Words


def stretches(starts: Int64Array, counts: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Return the places of stretches one after another, and the offsets of each stretch among them, int64 [len(starts) + 1]."""
    offsets = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)))
    places = np.arange(offsets[-1], dtype=np.int64) + np.repeat(starts - offsets[:-1], counts)
    return places, offsets


def common_codes(one: Words, two: Words) -> tuple[Int64Array, Int64Array, int]:
    """Return the codes of both columns' words in one vocabulary, and how many words that has."""
    code_of = {word: code for code, word in enumerate(one.vocabulary)}
    of_two = np.asarray([code_of.setdefault(word, len(code_of)) for word in two.vocabulary], dtype=np.int64)
    return one.codes_S, of_two[two.codes_S] if len(of_two) else two.codes_S, max(len(code_of), 1)
