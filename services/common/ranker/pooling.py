"""From keys of declared features to the numbers that a network takes: the rows of a feature's keys, pooled; and the gradients back to them.

The same compiled passes in training and in serving, each sum in the order of the keys. Of a sequence the keys of each event are pooled;
what becomes of the events is the network's. Knows no table: rows are handed in.
Shapes: G requests, B samples, V pooled columns of a side, S keys of a table, U rows of a table that are at hand, D floats of a row, P
events of all requests, W numbers of an event, Q of a sample to compare it with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from services.common.ranker.atomics import kernel
from services.common.ranker.declared.row_keys import KeyedFeature, KeyedRows, RowKeys
from services.common.ranker.declared.sequences import SequenceInputs
from services.common.ranker.declared.values import stretches

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """The pooled rows of all keyed features, or the gradient with respect to them."""

    user_GV: Float32Array
    items_BV: Float32Array
    sequences: tuple[tuple[Float32Array, Float32Array], ...] = ()
    """By sequence the events, float32 [P, W], and the samples, float32 [B, Q]."""

    @classmethod
    def of_sides(cls, sides: Sequence[Float32Array]) -> Pooled:
        """Invert `sides`."""
        user_GV, items_BV, *of_sequences = sides
        return cls(user_GV, items_BV, tuple(zip(of_sequences[::2], of_sequences[1::2], strict=True)))

    @property
    def sides(self) -> tuple[Float32Array, ...]:
        """All: user, items, and of each sequence the events and the samples."""
        return (self.user_GV, self.items_BV, *(side for one in self.sequences for side in one))


class Inputs(Protocol):
    """The part of `Plan` that says which features make keys."""

    @property
    def user_keyed(self) -> Sequence[KeyedFeature]:
        """Of requests."""

    @property
    def item_keyed(self) -> Sequence[KeyedFeature]:
        """Of candidates."""

    @property
    def sequences(self) -> Sequence[SequenceInputs]:
        """The sequences."""


class _Part(NamedTuple):
    """The keys of one feature: `keys`, its stretch of the ids of its table; by key the row that it belongs to, and its weight there."""

    side: int
    at: int
    feature: KeyedFeature
    keys: slice
    rows_S: Int64Array
    weights_S: Float32Array


class Pool:
    """Which rows of which tables the requests of a batch read, and where in the network's inputs they go.

    Attributes:
        ids: int64 [S] by table, in the order of the features; repeats are occurrences.
    """

    def __init__(self, plan: Inputs, keyed: KeyedRows) -> None:
        """`plan` says what the keys are of."""
        sides = [(plan.user_keyed, keyed.user), (plan.item_keyed, keyed.items)]
        for sequence, keys in zip(plan.sequences, keyed.sequences, strict=True):
            sides += [(sequence.parts, keys.events), (sequence.queries, keys.candidates)]
        self._event_ends = [np.cumsum(keys.lengths_G) for keys in keyed.sequences]
        self._sizes = [(len(rows), sum(one.dim for one in features)) for features, rows in sides]
        self._parts: list[_Part] = []
        found: dict[str, list[Int64Array]] = {}
        taken: dict[str, int] = {}
        for side, (features, rows) in enumerate(sides):
            starts_NK, at = rows.starts(), 0
            for which, feature in enumerate(features):
                keys_S, rows_S, weights_S = _of_feature(rows, starts_NK[:, which], which, feature.pooling)
                begin = taken.get(feature.table, 0)
                taken[feature.table] = begin + len(keys_S)
                found.setdefault(feature.table, []).append(keys_S)
                self._parts.append(_Part(side, at, feature, slice(begin, begin + len(keys_S)), rows_S, weights_S))
                at += feature.dim
        self.ids: Mapping[str, Int64Array] = {table: np.concatenate(keys) for table, keys in found.items()}

    def pooled(self, rows: Mapping[str, Float32Array], places: Mapping[str, Int64Array] | None = None) -> Pooled:
        """Return the inputs.

        Args:
            rows: float32 [U, D] by table.
            places: int64 [S] by table, the row of each of `ids`; None: the rows are those of `ids` one by one.
        """
        sides = [np.zeros(size, dtype=np.float32) for size in self._sizes]
        for part in self._parts:
            table = part.feature.table
            places_S = np.arange(part.keys.start, part.keys.stop) if places is None else places[table][part.keys]
            _pool(rows[table], places_S, part.rows_S, part.weights_S, sides[part.side], part.at)
        return Pooled.of_sides(sides)

    def of_request(self, pooled: Pooled, at: int, samples: slice) -> Pooled:
        """Return what one of the requests takes of what `pooled` returned; `samples` are its own."""
        sequences = []
        for ends_G, (events_PW, samples_BQ) in zip(self._event_ends, pooled.sequences, strict=True):
            sequences.append((events_PW[ends_G[at - 1] if at else 0 : ends_G[at]], samples_BQ[samples]))
        return Pooled(pooled.user_GV[at : at + 1], pooled.items_BV[samples], tuple(sequences))

    def back(self, of_pooled: Pooled, places: Mapping[str, Int64Array], num_rows: Mapping[str, int]) -> dict[str, Float32Array]:
        """Return the gradient with respect to the rows, float32 [U, D] by table.

        Args:
            of_pooled: with respect to what `pooled` returned.
            places: as there.
            num_rows: U by table.
        """
        found: dict[str, Float32Array] = {}
        for part in self._parts:
            table, dim = part.feature.table, part.feature.dim
            of_rows_UD = found.setdefault(table, np.zeros((num_rows[table], dim), dtype=np.float32))
            _pool_back(of_pooled.sides[part.side], part.at, part.rows_S, part.weights_S, places[table][part.keys], of_rows_UD)
        return found


def _of_feature(rows: RowKeys, starts_N: Int64Array, which: int, pooling: str) -> tuple[Int64Array, Int64Array, Float32Array]:
    """Return the keys of one feature, the row of each and its weight."""
    counts_N = rows.counts_NK[:, which]
    places_S, _ = stretches(starts_N, counts_N)
    rows_S = np.repeat(np.arange(len(rows), dtype=np.int64), counts_N)
    share_N = np.ones(len(rows), dtype=np.float32)
    if pooling == "mean":
        share_N /= np.maximum(counts_N, 1).astype(np.float32)
    return rows.keys_S[places_S], rows_S, share_N[rows_S]


@kernel
def _pool(rows_UD: Float32Array, places_S: Int64Array, rows_S: Int64Array, weights_S: Float32Array, out_NV: Float32Array, at: int) -> None:
    for s in range(places_S.size):
        for d in range(rows_UD.shape[1]):
            out_NV[rows_S[s], at + d] += weights_S[s] * rows_UD[places_S[s], d]


@kernel
def _pool_back(
    of_out_NV: Float32Array, at: int, rows_S: Int64Array, weights_S: Float32Array, places_S: Int64Array, of_rows_UD: Float32Array
) -> None:
    for s in range(places_S.size):
        for d in range(of_rows_UD.shape[1]):
            of_rows_UD[places_S[s], d] += weights_S[s] * of_out_NV[rows_S[s], at + d]
