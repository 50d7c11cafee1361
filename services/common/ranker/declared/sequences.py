"""Sequences: a user's latest events, each as the keys of its parts; and of every candidate the keys that it is compared with them by.

Parts that are computed of an item (`item:FIELD`, `feature:NAME`) are outputs of the plan of which only the sequence knows: they are
computed once an item version, whether it is a candidate or in a history. Parts of the event itself (`sequence:FIELD`) are computed here.
Shapes: G requests, P events of all their users, B candidates, K parts of an event, Q of them that a candidate has as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from services.common.ranker.declared.encodings import Keys, keys_of
from services.common.ranker.declared.entries import Encoded
from services.common.ranker.declared.entry_list import SequenceFeature
from services.common.ranker.declared.inputs import words_of
from services.common.ranker.declared.operators import cast_of, operator_of
from services.common.ranker.declared.row_keys import KeyedFeature, RowKeys, SequenceKeys
from services.common.ranker.declared.values import Column, Float64Array, Int64Array, Numbers, stretches


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """The latest events of the users of G requests, one user's behind the other's, newest first."""

    offsets: Int64Array
    """int64 [G + 1]."""
    item_ids: Sequence[str]
    values_P: Float64Array
    ages_P: Float64Array
    """Seconds before the request; NaN where it is not known when an event happened."""
    item_keys: Mapping[str, Keys]
    """Keys of items by feature, as `Plan.items` computes them."""
    rows_P: Int64Array
    """Which of the rows of `item_keys` the item of an event is."""

    @classmethod
    def nothing(cls, item_keys: Mapping[str, Keys]) -> Past:
        """Return that of one user who did nothing yet."""
        no_numbers, nobody = np.empty(0, dtype=np.float64), np.empty(0, dtype=np.int64)
        return cls(np.zeros(2, dtype=np.int64), (), no_numbers, no_numbers, item_keys, nobody)


class SequenceInputs(NamedTuple):
    """What a network takes of one sequence."""

    name: str
    length: int
    """Events at most."""
    parts: tuple[KeyedFeature, ...]
    """Of an event, in the order of the spec."""
    queries: tuple[KeyedFeature, ...]
    """Those parts that a candidate has as well: all but the ones of the event itself."""

    @property
    def width(self) -> int:
        """Numbers of an event: its parts side by side."""
        return sum(part.dim for part in self.parts)

    @property
    def query_width(self) -> int:
        """Numbers of a candidate."""
        return sum(part.dim for part in self.queries)

    @property
    def query_places(self) -> tuple[int, ...]:
        """Where among the numbers of an event those stand that a candidate has as well, in its order."""
        places: list[int] = []
        at = 0
        for part in self.parts:
            places += range(at, at + part.dim) if part in self.queries else ()
            at += part.dim
        return tuple(places)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the numbers that the network makes of it: the pooled events, and their product with the candidate."""
        pooled = tuple(f"{self.name}[{at}]" for at in range(self.width))
        return (*pooled, *(f"{self.name}[{at}]*" for at in self.query_places))


class SequencePlan:
    """One compiled sequence_feature. Holds no data."""

    def __init__(self, feature: SequenceFeature) -> None:
        """Compile it."""
        self._feature = feature
        self._of_item = {part.feature_name: feature.name_of(part) for part in feature.parts if _event_field(part) is None}
        parts = tuple(_keyed(part) for part in feature.parts)
        queries = tuple(one for one, part in zip(parts, feature.parts, strict=True) if _event_field(part) in (None, "item_id"))
        self.inputs = SequenceInputs(feature.feature_name, feature.sequence_length, parts, queries)

    def keys(self, past: Past, item_ids: Sequence[str], item_keys: Mapping[str, Keys], rows_B: Int64Array) -> SequenceKeys:
        """Return the keys of G requests and their B candidates.

        Args:
            past: of the G users.
            item_ids: of the B candidates.
            item_keys: of items by feature, as `Plan.items` computes them.
            rows_B: which of its rows a candidate is.
        """
        lengths_G = np.minimum(np.diff(past.offsets), self._feature.sequence_length)
        places_P, _ = stretches(past.offsets[:-1], lengths_G)
        of_events = [self._of_events(part, past, places_P) for part in self._feature.parts]
        of_candidates = [
            self._of_items(part, item_ids, item_keys, rows_B) for part in self._feature.parts if _event_field(part) in (None, "item_id")
        ]
        return SequenceKeys(lengths_G, RowKeys.of(of_events, len(places_P)), RowKeys.of(of_candidates, len(rows_B)))

    def _of_events(self, part: Encoded, past: Past, places_P: Int64Array) -> Keys:
        field = _event_field(part)
        if field in (None, "item_id"):
            return self._of_items(part, [past.item_ids[at] for at in places_P.tolist()], past.item_keys, past.rows_P[places_P])
        numbers_P = past.ages_P if field == "age" else past.values_P
        return _computed(part, Numbers(numbers_P[places_P].reshape(-1, 1)))

    def _of_items(self, part: Encoded, item_ids: Sequence[str], item_keys: Mapping[str, Keys], rows: Int64Array) -> Keys:
        if _event_field(part) is None:
            return item_keys[self._of_item[part.feature_name]].take(rows)
        return _computed(part, words_of("sequence:item_id", item_ids))


def _event_field(part: Encoded) -> str | None:
    """Return the field of the event that a part reads; None for parts of items."""
    side, _, field = part.references()[0].partition(":")
    return field if side == "sequence" else None


def _computed(part: Encoded, column: Column) -> Keys:
    assert (cast_of(part) == "numbers") == isinstance(column, Numbers)
    return keys_of(part, operator_of(part)([column]))


def _keyed(part: Encoded) -> KeyedFeature:
    assert part.table is not None and part.embedding_dim is not None
    return KeyedFeature(part.feature_name, part.table, part.pooling, part.embedding_dim)
