"""Numbers that are looked up in maps: entries of one column joined with the keys of another, row by row.

Shapes: N rows, E entries of all rows, K keys of all rows.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from services.common.ranker.declared.values import Float64Array, Int64Array, Numbers, Words, common_codes, stretches

Combiner = Literal["sum", "mean", "min", "max"]
ALL = "ALL"
# Between the two keys of a nested map, where no key can hold it.
_BETWEEN = "\x1f"
# Pairs of keys (a row), of which the first ones count.
MAX_PAIRS = 256


def looked_up(map_: Words, keys: Words, combiner: Combiner) -> Numbers:
    """Return, row by row, the numbers that `map_` has for the words of `keys`, combined; absent where it has none.

    An entry is "key:number"; one without a number counts 1, and one whose number cannot be read is not there. Of two entries with one key
    the last counts.
    """
    parsed = [_entry(word) for word in map_.vocabulary]
    names = Words(map_.codes_S, map_.offsets, tuple(key for key, _ in parsed))
    values_E = np.asarray([value for _, value in parsed] or [0.0], dtype=np.float64)[map_.codes_S]
    return _joined(names, values_E, keys, combiner)


def matched(map_: Words, first: Words | None, second: Words | None, combiner: Combiner) -> Numbers:
    """Return as `looked_up` what a nested map ("first^second:number" entries) has for pairs of keys; None: for any key.

    EasyRec's text "first^second:number,second:number|first^…" is as many entries.
    """
    flat = map_.expanded(_nested_entries)
    parsed = [word.rsplit(":", 1) for word in flat.vocabulary]
    whole = Words(flat.codes_S, flat.offsets, tuple(key for key, _ in parsed))
    values_E = np.asarray([float(value) for _, value in parsed] or [0.0], dtype=np.float64)[flat.codes_S]
    kept_E, offsets = _last_of_each(whole)
    values_E, codes_E = values_E[kept_E], whole.codes_S[kept_E]
    if first is not None and second is not None:
        return _joined(Words(codes_E, offsets, whole.vocabulary), values_E, pairs(first, second, _BETWEEN, MAX_PAIRS), combiner)
    side = 1 if first is None else 0
    names = tuple(key.split(_BETWEEN, 1)[side] for key in whole.vocabulary)
    return _combined(Words(codes_E, offsets, names), values_E, first or second or Words.of([[]] * len(map_)), combiner)


def pairs(one: Words, two: Words, between: str, most: int) -> Words:
    """Return every word of `one` with every word of `two`, row by row: `one`'s first word with all of `two` first; at most `most` a row."""
    counts_N, of_two_N = one.counts_N * two.counts_N, np.maximum(two.counts_N, 1)
    kept_N = np.minimum(counts_N, most)
    places, offsets = stretches(np.zeros(len(one), dtype=np.int64), kept_N)
    rows = np.repeat(np.arange(len(one), dtype=np.int64), kept_N)
    one_codes = one.codes_S[one.offsets[rows] + places // of_two_N[rows]]
    two_codes = two.codes_S[two.offsets[rows] + places % of_two_N[rows]]
    distinct, codes = np.unique(one_codes * max(len(two.vocabulary), 1) + two_codes, return_inverse=True)
    firsts, seconds = np.divmod(distinct, max(len(two.vocabulary), 1))
    words = [one.vocabulary[a] + between + two.vocabulary[b] for a, b in zip(firsts.tolist(), seconds.tolist(), strict=True)]
    return Words(codes.astype(np.int64), offsets, tuple(words))


def overlaps(query: Words, title: Words) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Return of each row the different words of both columns, and of each: int64 [N] common, of the query, of the title."""
    query_codes, title_codes, size = common_codes(query, title)
    in_query = np.unique(query.rows_S * size + query_codes)
    in_title = np.unique(title.rows_S * size + title_codes)
    both = np.intersect1d(in_query, in_title, assume_unique=True)
    common_N, query_N, title_N = (np.bincount(found // size, minlength=len(query)) for found in (both, in_query, in_title))
    return common_N, query_N, title_N


def _joined(names: Words, values_E: Float64Array, keys: Words, combiner: Combiner) -> Numbers:
    kept_E, offsets = _last_of_each(names)
    return _combined(Words(names.codes_S[kept_E], offsets, names.vocabulary), values_E[kept_E], keys, combiner)


def _last_of_each(names: Words) -> tuple[Int64Array, Int64Array]:
    """Return the entries that count, of equal names in a row the last, in their order, and their offsets."""
    # Two codes may have one name: "a:1" and "a:2" are two entries of "a".
    code_of: dict[str, int] = {}
    same = np.asarray([code_of.setdefault(name, len(code_of)) for name in names.vocabulary] or [0], dtype=np.int64)
    composite_E = names.rows_S * max(len(code_of), 1) + same[names.codes_S]
    _, last = np.unique(composite_E[::-1], return_index=True)
    kept_E = np.sort(len(composite_E) - 1 - last)
    counts_N = np.bincount(names.rows_S[kept_E], minlength=len(names))
    return kept_E, np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts_N)))


def _combined(names: Words, values_E: Float64Array, keys: Words, combiner: Combiner) -> Numbers:
    """Return, row by row, what all entries have whose names are among the keys, combined. Entries without a number (NaN) are not there."""
    there_E = ~np.isnan(values_E)
    same_of: dict[str, int] = {}
    of_names = np.asarray([same_of.setdefault(name, len(same_of)) for name in names.vocabulary] or [0], dtype=np.int64)
    of_keys = np.asarray([same_of.get(word, -1) for word in keys.vocabulary] or [-1], dtype=np.int64)
    size = max(len(same_of), 1)
    entries = (names.rows_S * size + of_names[names.codes_S])[there_E]
    order = np.argsort(entries, kind="stable")
    entries, values = entries[order], values_E[there_E][order]
    known_K = of_keys[keys.codes_S] >= 0
    rows_K = keys.rows_S[known_K]
    wanted_K = rows_K * size + of_keys[keys.codes_S][known_K]
    begin_K, end_K = np.searchsorted(entries, wanted_K, "left"), np.searchsorted(entries, wanted_K, "right")
    found, _ = stretches(begin_K.astype(np.int64), (end_K - begin_K).astype(np.int64))
    return Numbers(_per_row(values[found], np.repeat(rows_K, end_K - begin_K), len(keys), combiner)[:, None])


def _per_row(values: Float64Array, rows: Int64Array, num_rows: int, combiner: Combiner) -> Float64Array:
    """Return float64 [N]; NaN for rows without values. Sums go value by value in their order, so they do not depend on other rows."""
    counts_N = np.bincount(rows, minlength=num_rows)
    if combiner in ("min", "max"):
        result = np.full(num_rows, np.inf if combiner == "min" else -np.inf)
        (np.minimum if combiner == "min" else np.maximum).at(result, rows, values)
    else:
        with np.errstate(all="ignore"):
            result = np.bincount(rows, weights=values, minlength=num_rows).astype(np.float64, copy=False)
            if combiner == "mean":
                result = result / np.maximum(counts_N, 1)
    result[counts_N == 0] = np.nan
    return result


def _entry(word: str) -> tuple[str, float]:
    key, colon, number = word.rpartition(":")
    return (key, _float(number)) if colon else (word, 1.0)


def _nested_entries(word: str) -> list[str]:
    """Return "first, between, second, :number" of each entry of a nested map's word."""
    entries = []
    for part in word.split("|"):
        first, hat, rest = part.partition("^")
        for entry in rest.split(",") if hat else ():
            second, value = _entry(entry)
            if not math.isnan(value):
                entries.append(f"{first}{_BETWEEN}{second}:{value!r}")
    return entries


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
