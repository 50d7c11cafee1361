"""What new rows of an embedding table begin with: a function of table seed, id and column; in which order ids appear changes nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.common.ranker.atomics import kernel
from services.common.ranker.tables.index import Int64s, mix64

_ONE_OVER_2_53 = 1.0 / (1 << 53)
_BITS_DROPPED = np.uint64(11)
_COLUMN_STRIDE = np.uint64(0x9E3779B97F4A7C15)


@kernel
def fill_initial_rows(rows: NDArray[np.float32], slots: Int64s, ids: Int64s, seed: np.uint64, scale: float) -> None:
    """Set rows[slots[i], c] to a value of [-scale, scale) that depends on (seed, ids[i], c) alone."""
    for i in range(ids.size):
        state = mix64(np.uint64(ids[i]) ^ seed)
        for c in range(rows.shape[1]):
            bits = mix64(state + np.uint64(c + 1) * _COLUMN_STRIDE)
            rows[slots[i], c] = np.float32((2.0 * (np.float64(bits >> _BITS_DROPPED) * _ONE_OVER_2_53) - 1.0) * scale)
