"""From a feature's numbers or words to what the network takes: columns of numbers, float16, or keys of rows, uint64.

Columns are named after the feature: `price`, `picture.0`, `city=Rome`, `city.unknown`, `city.absent`, `price.2` (its bucket).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.common.ranker.declared.entries import Encoded, NumbersEntry, WordsEntry
from services.common.ranker.declared.hashing import bucket_of, row_key
from services.common.ranker.declared.values import Column, Float64Array, Int64Array, Numbers, Words, stretches

Float16Array = npt.NDArray[np.float16]

_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class Keys:
    """Rows of a table for each of N rows of a feature."""

    table: str
    pooling: str
    keys_S: npt.NDArray[np.uint64]
    offsets: Int64Array
    """int64 [N + 1]."""

    def take(self, rows_B: Int64Array) -> Keys:
        """Return the rows of these places."""
        starts_B = self.offsets[rows_B]
        places, offsets = stretches(starts_B, self.offsets[rows_B + 1] - starts_B)
        return Keys(self.table, self.pooling, self.keys_S[places], offsets)


def number_names(feature: NumbersEntry, width: int) -> tuple[str, ...]:
    """Return the names of the columns of a feature of numbers that has no table."""
    name = feature.feature_name
    if feature.boundaries is not None:
        names = [f"{name}.{bucket}" for bucket in range(len(feature.boundaries) + 1)]
    else:
        names = [name] if width == 1 else [f"{name}.{at}" for at in range(width)]
    return (*names, *([] if feature.default_value is not None else [f"{name}.absent"]))


def number_columns(feature: NumbersEntry, numbers: Numbers) -> Float16Array:
    """Return float16 [N, columns] as `number_names` names them; numbers beyond float16 are its largest, 65,504."""
    values_ND, absent_N = numbers.values_ND, numbers.absent_N
    if feature.boundaries is not None:
        columns = np.zeros((len(numbers), len(feature.boundaries) + 1))
        present = np.flatnonzero(~absent_N)
        columns[present, buckets(feature.boundaries, values_ND[present, 0])] = 1.0
    else:
        columns = np.where(absent_N[:, None], 0.0, values_ND)
    if feature.default_value is None:
        columns = np.concatenate((columns, absent_N[:, None]), axis=1)
    return np.clip(columns, -_LARGEST, _LARGEST).astype(np.float16)


def number_keys(feature: NumbersEntry, numbers: Numbers) -> Keys:
    """Return one key a row: of the bucket, or of absence."""
    table, bounds = feature.table, feature.boundaries
    assert table is not None and bounds is not None
    known = np.asarray([row_key(table, "bucket", str(at)) for at in range(len(bounds) + 1)], dtype=np.uint64)
    at_N = buckets(bounds, np.where(numbers.absent_N, 0.0, numbers.values_ND[:, 0]))
    keys_N = np.where(numbers.absent_N, np.uint64(row_key(table, "absent")), known[at_N])
    return Keys(table, feature.pooling, keys_N, np.arange(len(numbers) + 1, dtype=np.int64))


def buckets(boundaries: Sequence[float], values_N: Float64Array) -> Int64Array:
    """Return the bucket of each number: how many boundaries it has reached. No number may be NaN."""
    return np.searchsorted(np.asarray(boundaries), values_N, side="right").astype(np.int64)


def word_names(feature: WordsEntry) -> tuple[str, ...]:
    """Return the names of the columns of a feature of words that has no table."""
    name = feature.feature_name
    if feature.hash_bucket_size is not None:
        names = [f"{name}.{bucket}" for bucket in range(feature.hash_bucket_size)]
    else:
        names = [*(f"{name}={word}" for word in known_words(feature)), f"{name}.unknown"]
    return (*names, *([] if feature.default_value is not None else [f"{name}.absent"]))


def known_words(feature: WordsEntry) -> tuple[str, ...]:
    """Return the words that are not unknown to a feature with vocab_list or num_buckets."""
    if feature.vocab_list is not None:
        return feature.vocab_list
    return tuple(map(str, range(feature.num_buckets or 0)))


def word_columns(feature: WordsEntry, words: Words) -> Float16Array:
    """Return float16 [N, columns] as `word_names` names them: how often a row has each word (pooling sum), or its share (mean)."""
    width = len(word_names(feature))
    if feature.hash_bucket_size is not None:
        column_of = [bucket_of(word, feature.hash_bucket_size) for word in words.vocabulary]
    else:
        places = {word: at for at, word in enumerate(known_words(feature))}
        column_of = [places.get(word, len(places)) for word in words.vocabulary]
    at_S = words.rows_S * width + np.asarray(column_of or [0], dtype=np.int64)[words.codes_S]
    columns = np.bincount(at_S, minlength=len(words) * width).reshape(len(words), width).astype(np.float64)
    counts_N = words.counts_N
    if feature.pooling == "mean":
        columns /= np.maximum(counts_N, 1)[:, None]
    if feature.default_value is None:
        columns[:, -1] = counts_N == 0
    return columns.astype(np.float16)


def word_keys(feature: WordsEntry, words: Words) -> Keys:
    """Return the keys of each row's words; one of absence for a row without words."""
    table = feature.table
    assert table is not None
    # One more code, behind the vocabulary: absence.
    known = np.asarray([*_keys_of(feature, table, words.vocabulary), row_key(table, "absent")], dtype=np.uint64)
    counts_N = words.counts_N
    codes_S = np.insert(words.codes_S, words.offsets[:-1][counts_N == 0], len(words.vocabulary))
    offsets = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(np.maximum(counts_N, 1))))
    return Keys(table, feature.pooling, known[codes_S], offsets)


def keys_of(feature: Encoded, column: Column) -> Keys:
    """Return the keys of a feature with a table, whatever its kind."""
    if isinstance(feature, NumbersEntry) and isinstance(column, Numbers):
        return number_keys(feature, column)
    assert isinstance(feature, WordsEntry) and isinstance(column, Words)
    return word_keys(feature, column)


def _keys_of(feature: WordsEntry, table: str, vocabulary: Sequence[str]) -> list[int]:
    if feature.hash_bucket_size is not None:
        return [row_key(table, "bucket", str(bucket_of(word, feature.hash_bucket_size))) for word in vocabulary]
    if feature.vocab_list is None and feature.num_buckets is None:
        return [row_key(table, "word", word) for word in vocabulary]
    known = _known(feature)
    return [row_key(table, "word", word) if word in known else row_key(table, "unknown") for word in vocabulary]


def _known(feature: WordsEntry) -> frozenset[str] | _Integers:
    return frozenset(known_words(feature)) if feature.vocab_list is not None else _Integers(feature.num_buckets or 0)


@dataclass(frozen=True, slots=True)
class _Integers:
    """The words "0" to that of `below` - 1, without a list of them."""

    below: int

    def __contains__(self, word: str) -> bool:
        return word.isascii() and word.isdigit() and len(word) < 20 and (word == "0" or word[0] != "0") and int(word) < self.below
