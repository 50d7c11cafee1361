"""What each kind of feature computes: from the columns that it reads to its numbers or words, before they are encoded. Row by row.

`casts` says what a kind reads its references as. Absent stays absent until a feature's `default_value` replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Literal

import numpy as np

from services.common.ranker.declared.encodings import buckets
from services.common.ranker.declared.entries import (
    ComboFeature,
    Entry,
    ExprFeature,
    IdFeature,
    LookupFeature,
    MatchFeature,
    NumbersEntry,
    OverlapFeature,
    RawFeature,
    TokenizeFeature,
    WordsEntry,
)
from services.common.ranker.declared.expressions import compile_expression
from services.common.ranker.declared.inputs import word_of
from services.common.ranker.declared.lookups import ALL, MAX_PAIRS, looked_up, matched, overlaps, pairs
from services.common.ranker.declared.normalizers import compile_normalizer
from services.common.ranker.declared.tokenizers import tokenizer_of
from services.common.ranker.declared.values import Column, Float64Array, Numbers, Words

Cast = Literal["numbers", "words"]
Operator = Callable[[Sequence[Column]], Column]

# Between the words of a combination, where no word of a vocabulary can hold it.
_BETWEEN = "\x1e"


def cast_of(feature: Entry) -> Cast:
    """Return what a kind reads its references as."""
    return "numbers" if isinstance(feature, (RawFeature, ExprFeature)) else "words"


def operator_of(feature: Entry) -> Operator:
    """Return what a feature computes of the columns of its references, in their order: all of them Numbers, or all Words."""
    if isinstance(feature, WordsEntry):
        return _words_operator(feature)
    assert isinstance(feature, NumbersEntry)
    compute, finish = _numbers_operator(feature), _finish(feature)
    return lambda columns: finish(compute(columns))


def as_words(feature: NumbersEntry, numbers: Numbers) -> Words:
    """Return a feature of numbers as another reads it that wants words: the bucket's number, or else the number."""
    absent_N, values_N = numbers.absent_N, numbers.values_ND[:, 0]
    if feature.boundaries is not None:
        values_N = buckets(feature.boundaries, np.where(absent_N, 0.0, values_N)).astype(np.float64)
    rows = zip(values_N.tolist(), absent_N.tolist(), strict=True)
    return Words.of([[] if absent else [word_of(feature.feature_name, value)] for value, absent in rows])


def _words_operator(feature: WordsEntry) -> Operator:
    compute: Callable[[Sequence[Words]], Words]
    if isinstance(feature, IdFeature):
        compute = _first
    elif isinstance(feature, TokenizeFeature):
        tokens, most = tokenizer_of(feature.tokenizer_type, feature.max_length), feature.max_length
        compute = lambda columns: columns[0].expanded(tokens).first(most)  # noqa: E731
    else:
        assert isinstance(feature, ComboFeature)
        compute = lambda columns: reduce(lambda one, two: pairs(one, two, _BETWEEN, MAX_PAIRS), columns)  # noqa: E731
    default = feature.default_value

    def operate(columns: Sequence[Column]) -> Column:
        words = compute([column for column in columns if isinstance(column, Words)])
        return words if default is None else words.filled(default)

    return operate


def _first(columns: Sequence[Words]) -> Words:
    return columns[0]


def _numbers_operator(feature: NumbersEntry) -> Callable[[Sequence[Column]], Numbers]:
    if isinstance(feature, (RawFeature, ExprFeature)):
        compute = _identity if isinstance(feature, RawFeature) else _expression(feature)
        return lambda columns: compute([column for column in columns if isinstance(column, Numbers)])
    of_words = _of_words(feature)
    return lambda columns: of_words([column for column in columns if isinstance(column, Words)])


def _identity(columns: Sequence[Numbers]) -> Numbers:
    return columns[0]


def _of_words(feature: NumbersEntry) -> Callable[[Sequence[Words]], Numbers]:
    if isinstance(feature, LookupFeature):
        combiner = feature.combiner
        return lambda columns: looked_up(columns[0], columns[1], combiner)
    if isinstance(feature, MatchFeature):
        return _match(feature)
    assert isinstance(feature, OverlapFeature)
    return _overlap(feature)


def _match(feature: MatchFeature) -> Callable[[Sequence[Words]], Numbers]:
    has_first, has_second, combiner = feature.pkey != ALL, feature.skey != ALL, feature.combiner
    return lambda columns: matched(columns[0], columns[1] if has_first else None, columns[-1] if has_second else None, combiner)


def _overlap(feature: OverlapFeature) -> Callable[[Sequence[Words]], Numbers]:
    method = feature.method

    def compute(columns: Sequence[Words]) -> Numbers:
        common_N, query_N, title_N = overlaps(*columns)
        if method == "query_common_ratio":
            result = common_N / np.maximum(query_N, 1)
        elif method == "title_common_ratio":
            result = common_N / np.maximum(title_N, 1)
        else:
            result = (common_N == query_N).astype(np.float64)
            if method == "is_equal":
                result *= common_N == title_N
        return Numbers(np.where((query_N == 0) | (title_N == 0), np.nan, result)[:, None])

    return compute


def _expression(feature: ExprFeature) -> Callable[[Sequence[Numbers]], Numbers]:
    evaluate = compile_expression(feature.expression, feature.variable_names)

    def compute(columns: Sequence[Numbers]) -> Numbers:
        # Contiguous copies: numpy may take another loop, of other last bits, for numbers that do not lie side by side.
        result = evaluate([np.ascontiguousarray(column.values_ND[:, 0]) for column in columns])
        return Numbers(np.broadcast_to(result, len(columns[0])).reshape(-1, 1))

    return compute


def _finish(feature: NumbersEntry) -> Callable[[Numbers], Numbers]:
    """Return what every feature of numbers does with its result: default_value, clip, normalizer, in this order."""
    default, clip = feature.default_value, feature.clip
    normalize = None if feature.normalizer is None else compile_normalizer(feature.normalizer)

    def finish(numbers: Numbers) -> Numbers:
        values_ND: Float64Array = numbers.values_ND
        if default is not None:
            values_ND = np.where(numbers.absent_N[:, None], default, values_ND)
        if clip is not None:
            values_ND = np.clip(values_ND, *clip)
        if normalize is not None:
            values_ND = normalize(np.ascontiguousarray(values_ND))
        return Numbers(values_ND)

    return finish
