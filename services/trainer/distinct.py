"""Which ids occur in a micro-batch, and where: de-duplication by a hash table of its own size, several times as fast as by sorting."""

from __future__ import annotations

import numpy as np

from services.common.ranker.atomics import kernel
from services.common.ranker.tables.index import Int64s, home_cell

_EMPTY = -1


@kernel
def distinct(keys_N: Int64s) -> tuple[Int64s, Int64s]:
    """Return the distinct keys, int64 [U], in the order in which they first occur, and the place of each of keys [N] among them."""
    num_cells = 16
    while num_cells < 2 * keys_N.size:
        num_cells *= 2
    cells = np.full(num_cells, _EMPTY, np.int64)
    distinct_U, place_N = np.empty(keys_N.size, np.int64), np.empty(keys_N.size, np.int64)
    num_distinct = 0
    for n in range(keys_N.size):
        cell = home_cell(keys_N[n], num_cells)
        while cells[cell] != _EMPTY and distinct_U[cells[cell]] != keys_N[n]:
            cell = (cell + 1) & (num_cells - 1)
        if cells[cell] == _EMPTY:
            cells[cell] = num_distinct
            distinct_U[num_distinct] = keys_N[n]
            num_distinct += 1
        place_N[n] = cells[cell]
    return distinct_U[:num_distinct].copy(), place_N
