"""The publish gate of the ranker: what a delta or base must pass before any replica sees it. Pure.

It looks at the rows and weights that would be published, which is all that changed since the last delta.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32s = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishGateLimits:
    """What the publish gate still believes to be a sound model."""

    max_row_norm: float
    """Largest Euclidean norm of an embedding row."""
    max_dense_norm: float
    """Largest Euclidean norm of one dense parameter tensor."""


def refusal(rows_by_table: Mapping[str, Float32s], dense: Mapping[str, Float32s], limits: PublishGateLimits) -> str:
    """Return why these must not be published, in one line; empty when they may.

    Args:
        rows_by_table: float32 [U, dim] per table.
        dense: float32 tensors by parameter name.
        limits: the norms to hold.
    """
    for name, rows in rows_by_table.items():
        norms = np.linalg.norm(rows.astype(np.float64), axis=1)
        if not np.isfinite(norms).all():
            return f"table {name!r}: {np.count_nonzero(~np.isfinite(norms))} of {len(norms)} rows hold NaN or infinity"
        if norms.size and norms.max() > limits.max_row_norm:
            return f"table {name!r}: a row has norm {norms.max():.3g}, above the limit of {limits.max_row_norm:.3g}"
    for name, tensor in dense.items():
        norm = float(np.linalg.norm(tensor.astype(np.float64)))
        if not np.isfinite(norm):
            return f"dense weight {name!r} holds NaN or infinity"
        if norm > limits.max_dense_norm:
            return f"dense weight {name!r} has norm {norm:.3g}, above the limit of {limits.max_dense_norm:.3g}"
    return ""
