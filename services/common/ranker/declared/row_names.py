"""What the rows that a request read are called: the words behind their keys, as far as these can be told. Pure.

A key is a hash, and the block holds no words. What a spec lists (vocabularies, buckets, absence, the unknown) is found by hashing all of
it; of other words, those that the request brought. What is left is shown as `#` and the key, which is the row's id in its table.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from services.common.ranker.declared.encodings import known_words
from services.common.ranker.declared.entries import Encoded, NumbersEntry, WordsEntry
from services.common.ranker.declared.entry_list import SequenceFeature
from services.common.ranker.declared.hashing import row_key
from services.common.ranker.declared.inputs import WrongValue
from services.common.ranker.declared.plan import Attributes, Plan
from services.common.ranker.declared.row_keys import KeyedFeature, KeyedRows, RowKeys
from services.common.ranker.declared.values import Words

ABSENT, UNKNOWN = "(absent)", "(unknown)"
_MAX_LISTED = 100_000
"""Of a longer list (`num_buckets` may be a billion) only words that the request brought are found."""

Named = dict[str, list[str]]
"""By feature."""


@dataclass(frozen=True, slots=True)
class RowNames:
    """The names of all keys of one request.

    Attributes:
        user: of the features of the user's side.
        items: a dictionary an item, in the order of the block.
        sequences: by sequence a dictionary an event, newest first.
    """

    user: Named
    items: Sequence[Named]
    sequences: Mapping[str, Sequence[Named]]


def row_names(plan: Plan, keys: KeyedRows, *, profile: Attributes, context: Attributes, item_ids: Iterable[str]) -> RowNames:
    """Return what the keys of a request are called.

    Args:
        plan: of the spec.
        keys: of the request.
        profile, context: what the request brought.
        item_ids: whose ids may be words, of sequences.
    """
    words = {*_words_of(plan, profile, context), *item_ids}
    entries = {one.feature_name: _names(one, words) for one in plan.features if isinstance(one, Encoded) and one.table is not None}
    sequences = {}
    for one, of_sequence in zip((each for each in plan.features if isinstance(each, SequenceFeature)), keys.sequences, strict=True):
        parts = next(inputs.parts for inputs in plan.sequences if inputs.name == one.feature_name)
        sequences[one.feature_name] = _named(of_sequence.events, parts, {part.feature_name: _names(part, words) for part in one.parts})
    return RowNames(next(iter(_named(keys.user, plan.user_keyed, entries)), {}), _named(keys.items, plan.item_keyed, entries), sequences)


def _words_of(plan: Plan, profile: Attributes, context: Attributes) -> Iterator[str]:
    """Yield all words that features make of what the request brought; none where a value is of another type than they read."""
    try:
        columns = plan.events([profile], [context]).columns
    except WrongValue:
        return
    for column in columns.values():
        if isinstance(column, Words):
            yield from column.vocabulary


def _names(feature: Encoded, words: Iterable[str]) -> dict[int, str]:
    """Return what is known of a feature's keys, by key."""
    table = feature.table
    assert table is not None
    found = {row_key(table, "absent"): ABSENT}
    if isinstance(feature, NumbersEntry):
        return found | {row_key(table, "bucket", str(at)): name for at, name in enumerate(_ranges(feature.boundaries or ()))}
    assert isinstance(feature, WordsEntry)
    if feature.hash_bucket_size is not None:
        listed = range(min(feature.hash_bucket_size, _MAX_LISTED))
        return found | {row_key(table, "bucket", str(at)): f"bucket {at}" for at in listed}
    few = feature.num_buckets is None or feature.num_buckets <= _MAX_LISTED
    named = {row_key(table, "word", word): word for word in (*(known_words(feature) if few else ()), *words)}
    return found | {row_key(table, "unknown"): UNKNOWN} | named


def _ranges(boundaries: Sequence[float]) -> Iterator[str]:
    """Yield the buckets in words: of one boundary "below 60" and "from 60"."""
    if not boundaries:
        return
    yield f"below {boundaries[0]:g}"
    for low, high in itertools.pairwise(boundaries):
        yield f"{low:g} to {high:g}"
    yield f"from {boundaries[-1]:g}"


def _named(rows: RowKeys, features: Sequence[KeyedFeature], names: Mapping[str, Mapping[int, str]]) -> list[Named]:
    keys, begin, found = rows.keys_S.view("u8").tolist(), 0, []
    for counts in rows.counts_NK.tolist():
        row: Named = {}
        for feature, count in zip(features, counts, strict=True):
            row[feature.name] = [names[feature.name].get(key, f"#{key:016x}") for key in keys[begin : begin + count]]
            begin += count
        found.append(row)
    return found
