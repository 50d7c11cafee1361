"""The keys that rows have of several keyed features, in two arrays: what an exposure block holds of them, and what pooling reads. Pure.

Shapes: N rows, K features, S keys of all rows and features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from services.common.ranker.declared.encodings import Keys
from services.common.ranker.declared.values import Int64Array, stretches


class KeyedFeature(NamedTuple):
    """A feature of which the network sees the rows of its keys, pooled."""

    name: str
    table: str
    pooling: str
    """"sum" or "mean"."""
    dim: int
    """Floats of a row."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the numbers that the network takes of it; no column of numbers has brackets."""
        return tuple(f"{self.name}[{at}]" for at in range(self.dim))


@dataclass(frozen=True, slots=True, eq=False)
class RowKeys:
    """Row by row, and in a row feature by feature, the keys."""

    counts_NK: Int64Array
    """How many keys a row has of a feature."""
    keys_S: Int64Array
    """Ids of table rows."""

    @classmethod
    def of(cls, features: Sequence[Keys], num_rows: int) -> RowKeys:
        """Put features side by side; each has `num_rows` rows."""
        counts_NK, starts_NK = (np.empty((num_rows, len(features)), dtype=np.int64) for _ in range(2))
        begin = 0
        for at, one in enumerate(features):
            counts_NK[:, at], starts_NK[:, at] = np.diff(one.offsets), one.offsets[:-1] + begin
            begin += len(one.keys_S)
        keys_S = np.concatenate([np.empty(0, dtype=np.uint64), *(one.keys_S for one in features)])
        return cls(counts_NK, keys_S[stretches(starts_NK.ravel(), counts_NK.ravel())[0]].view(np.int64))

    @classmethod
    def joined(cls, parts: Sequence[RowKeys]) -> RowKeys:
        """Put rows of the same features one behind the other; at least one part."""
        return cls(np.concatenate([part.counts_NK for part in parts]), np.concatenate([part.keys_S for part in parts]))

    def __len__(self) -> int:
        return len(self.counts_NK)

    def take(self, rows_B: Int64Array) -> RowKeys:
        """Return the rows of these places."""
        counts_N = self.counts_NK.sum(axis=1)
        places_S, _ = stretches((np.cumsum(counts_N) - counts_N)[rows_B], counts_N[rows_B])
        return RowKeys(self.counts_NK[rows_B], self.keys_S[places_S])

    def starts(self) -> Int64Array:
        """Return where in `keys_S` those of a row and feature begin, int64 [N, K]."""
        counts = self.counts_NK.ravel()
        starts: Int64Array = (np.cumsum(counts) - counts).reshape(self.counts_NK.shape)
        return starts


@dataclass(frozen=True, slots=True, eq=False)
class SequenceKeys:
    """The keys of one sequence_feature of requests."""

    lengths_G: Int64Array
    """Events of the user of each request."""
    events: RowKeys
    """A row an event, newest first, a request's behind the other's; of all parts."""
    candidates: RowKeys
    """A row a candidate; of those parts that a candidate has as well."""

    @classmethod
    def joined(cls, parts: Sequence[SequenceKeys]) -> SequenceKeys:
        """Put requests one behind the other; at least one."""
        lengths_G = np.concatenate([part.lengths_G for part in parts])
        return cls(lengths_G, RowKeys.joined([part.events for part in parts]), RowKeys.joined([part.candidates for part in parts]))

    def taken(self, requests: Int64Array, candidates: Int64Array) -> SequenceKeys:
        """Return the events of these requests, and these candidates."""
        lengths = self.lengths_G[requests]
        events, _ = stretches((np.cumsum(self.lengths_G) - self.lengths_G)[requests], lengths)
        return SequenceKeys(lengths, self.events.take(events), self.candidates.take(candidates))


@dataclass(frozen=True, slots=True, eq=False)
class KeyedRows:
    """The keys of requests: of `Plan.user_keyed` a row a request, of `Plan.item_keyed` a row a candidate, in the order of the requests."""

    user: RowKeys
    items: RowKeys
    sequences: tuple[SequenceKeys, ...] = ()
    """Of `Plan.sequences`."""

    @classmethod
    def joined(cls, parts: Sequence[KeyedRows]) -> KeyedRows:
        """Put requests one behind the other; at least one."""
        sequences = zip(*(part.sequences for part in parts), strict=True)
        return cls(
            RowKeys.joined([part.user for part in parts]),
            RowKeys.joined([part.items for part in parts]),
            tuple(SequenceKeys.joined(each) for each in sequences),
        )

    def only(self, rows: Int64Array) -> KeyedRows:
        """Return one request with these candidates only."""
        return KeyedRows(
            self.user, self.items.take(rows), tuple(replace(one, candidates=one.candidates.take(rows)) for one in self.sequences)
        )

    def taken(self, requests: Int64Array, candidates: Int64Array) -> KeyedRows:
        """Return these requests and these candidates."""
        sequences = tuple(one.taken(requests, candidates) for one in self.sequences)
        return KeyedRows(self.user.take(requests), self.items.take(candidates), sequences)
