"""What is known of items as of one reading of the stream-wide counters: merged and decoded once, a row an item, gathered by many requests.

Knows nothing about Redis or of how long a generation lives. Shapes: N items, M numbers of an item's sums (ItemMatrix.of_sums).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import numpy.typing as npt

from services.common.platform.ids import entity_key
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.states import GlobalState, item_sums, num_item_sums
from services.common.ranker.tallies import Float64Array

Int64Array = npt.NDArray[np.int64]

_FIRST_ROWS = 512
_MISSING = -1


@dataclass(frozen=True, slots=True)
class ItemRows:
    """N items in the order in which they were asked for."""

    sums_NM: Float64Array
    keys_N: Int64Array
    """Their table keys."""


@dataclass(slots=True)
class Generation:
    """One reading of the stream-wide counters, and the items that were merged with it since. A row never changes or moves.

    It holds at most `max_items` rows, each of `8 * (M + 1)` bytes and its id. What comes when it is full is answered and not kept: a
    generation ends so soon that those who were asked for first are as good a choice as any.
    """

    spec: FeatureSpec
    totals_P: Sequence[GlobalState | None]
    total: GlobalState
    """`merge_globals` of `totals_P`."""
    expires_at: float
    max_items: int
    _row_of: dict[str, int] = field(init=False, default_factory=dict)
    _sums_RM: Float64Array = field(init=False)
    _keys_R: Int64Array = field(init=False)

    def __post_init__(self) -> None:
        self._allocate(min(_FIRST_ROWS, self.max_items))

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def num_bytes(self) -> int:
        """Size of the rows; the ids come on top."""
        return self._sums_RM.nbytes + self._keys_R.nbytes

    def missing(self, item_ids: Sequence[str]) -> list[str]:
        """Return those that have no row."""
        # Nearly always there are none, or all: a look at all of them at once is cheaper than a loop.
        return [] if self._row_of.keys() >= set(item_ids) else [item_id for item_id in item_ids if item_id not in self._row_of]

    def rows(self, item_ids: Sequence[str], fetched: Sequence[str], packed: Sequence[bytes | None]) -> ItemRows:
        """Return the rows of N items, and keep those that were just fetched.

        Args:
            item_ids: each has a row or is among `fetched`.
            fetched: items whose states were just read.
            packed: their packed states, all partials of the first item, then those of the second, and so on.
        Raises:
            CorruptArtifact: one of them is no state; nothing is kept.
        """
        if not fetched:
            return self._gathered(item_ids)
        width = len(self.totals_P)
        sums_FM = item_sums(self.spec, [packed[partial::width] for partial in range(width)], self.totals_P)
        keys_F = np.asarray([entity_key(item_id) for item_id in fetched], dtype=np.int64)
        self._keep(fetched, sums_FM, keys_F)
        if len(self._row_of) < self.max_items:
            return self._gathered(item_ids)
        return self._beside(item_ids, fetched, sums_FM, keys_F)

    def _gathered(self, item_ids: Sequence[str]) -> ItemRows:
        rows_N = np.fromiter(map(self._row_of.__getitem__, item_ids), dtype=np.int64, count=len(item_ids))
        return ItemRows(self._sums_RM[rows_N], self._keys_R[rows_N])

    def _beside(self, item_ids: Sequence[str], fetched: Sequence[str], sums_FM: Float64Array, keys_F: Int64Array) -> ItemRows:
        """Return rows of which some may not have been kept."""
        at_F = dict(zip(fetched, range(len(fetched)), strict=True))
        rows_N = np.fromiter(map(self._row_of.get, item_ids, repeat(_MISSING)), dtype=np.int64, count=len(item_ids))
        kept_N = rows_N != _MISSING
        from_N = [at_F[item_id] for item_id in item_ids if item_id not in self._row_of]
        sums_NM, keys_N = np.empty((len(item_ids), sums_FM.shape[1])), np.empty(len(item_ids), dtype=np.int64)
        sums_NM[kept_N], keys_N[kept_N] = self._sums_RM[rows_N[kept_N]], self._keys_R[rows_N[kept_N]]
        sums_NM[~kept_N], keys_N[~kept_N] = sums_FM[from_N], keys_F[from_N]
        return ItemRows(sums_NM, keys_N)

    def _keep(self, fetched: Sequence[str], sums_FM: Float64Array, keys_F: Int64Array) -> None:
        """Give rows to what has none, as long as there is room: another request may have fetched the same items meanwhile."""
        first = len(self._row_of)
        row_of, room = self._row_of, self.max_items - first
        chosen: list[int] = []
        for at, item_id in enumerate(fetched):
            if len(chosen) < room and item_id not in row_of:
                row_of[item_id] = first + len(chosen)
                chosen.append(at)
        last = first + len(chosen)
        if last > len(self._keys_R):
            self._allocate(min(max(last, 2 * len(self._keys_R)), self.max_items))
        self._sums_RM[first:last], self._keys_R[first:last] = sums_FM[chosen], keys_F[chosen]

    def _allocate(self, num_rows: int) -> None:
        sums_RM, keys_R = np.empty((num_rows, num_item_sums(self.spec))), np.empty(num_rows, dtype=np.int64)
        if self._row_of:
            kept = len(self._sums_RM)
            sums_RM[:kept], keys_R[:kept] = self._sums_RM, self._keys_R
        self._sums_RM, self._keys_R = sums_RM, keys_R
