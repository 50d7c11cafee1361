"""Asks a mesh about impressions of which the truth is known, and tells it what came of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loadtests.asked import TASK, Mesh
from loadtests.metrics import auc
from loadtests.wide.world import CONTEXT_CATEGORIES, CONTEXT_NUMBERS
from tunemesh_client import Feedback

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Asked:
    """What was predicted, what came of it, and what was probable in truth; float64, N impressions each.

    Attributes:
        num_degraded: answers that were not whole; none of them is among the N.
    """

    said_N: Floats
    clicks_N: Floats
    truth_N: Floats
    without_N: Floats
    num_degraded: int

    @property
    def aucs(self) -> tuple[float, float, float]:
        """Of the mesh, of the truth, and of the truth for whoever does not know the planted interaction."""
        mesh, truth, without = (auc(self.clicks_N, scores) for scores in (self.said_N, self.truth_N, self.without_N))
        return mesh, truth, without

    def __str__(self) -> str:
        """Return the comparison, two lines."""
        mesh, truth, without = self.aucs
        return (
            f"{len(self.clicks_N):,} impressions, {self.clicks_N.sum():.0f} clicks, {self.said_N.sum():.1f} predicted; "
            f"{self.num_degraded} answers not whole\n"
            f"AUC of the mesh {mesh:.3f}; of the truth {truth:.3f}; of the truth without the planted interaction {without:.3f}"
        )


def ask(mesh: Mesh, shown: pa.Table) -> Asked:
    """Ask about each impression, and report it as clicked on or as seen.

    Args:
        shown: as `__main__.write` writes them, with columns `truth` and `without`.
    """
    kept, num_degraded = [], 0
    for row in shown.to_pylist():
        context = {name: row[name] for name in (*CONTEXT_NUMBERS, *CONTEXT_CATEGORIES) if row[name] is not None}
        answer = mesh.recommend(row["user_id"], [row["item_id"]], 1, context=context)
        mesh.feedback(Feedback(answer.request_id, row["user_id"], row["kind"], item_id=row["item_id"]))
        if answer.degraded_reason:
            num_degraded += 1
            continue
        said = answer.items[0].task_scores[answer.task_names.index(TASK)]
        kept.append((said, float(row["kind"] == "click"), row["truth"], row["without"]))
    said_N, clicks_N, truth_N, without_N = np.asarray(kept, np.float64).reshape(-1, 4).T
    return Asked(said_N, clicks_N, truth_N, without_N, num_degraded)
