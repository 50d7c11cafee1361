"""Asks a mesh how probable the logged clicks are, and tells it what came of each impression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from loadtests.asked import TASK, Mesh
from loadtests.open_bandit.logs import USER_FEATURES
from services.trainer.held_out.estimates import calibration
from tunemesh_client import Feedback


@dataclass(frozen=True, slots=True)
class Asked:
    """What was predicted and what came of it; N impressions.

    Attributes:
        probabilities_N: of a click, float64.
        clicks_N: 1 where there was one, else 0, float64.
        user_N: which user, int64.
        num_degraded: answers that were not whole; none of them is among the N.
        first_version, last_version: "epoch.seq" of the ranker that answered first and last.
    """

    probabilities_N: np.ndarray[Any, np.dtype[np.float64]]
    clicks_N: np.ndarray[Any, np.dtype[np.float64]]
    user_N: np.ndarray[Any, np.dtype[np.int64]]
    num_degraded: int
    first_version: str
    last_version: str

    def __str__(self) -> str:
        """Return the comparison, two lines."""
        versions = f"model {self.first_version} at first, {self.last_version} at last; {self.num_degraded} answers not whole"
        found = calibration(self.clicks_N, self.probabilities_N, self.user_N, int(self.user_N.max(initial=-1)) + 1)
        ends = found.interval()
        interval = "no interval: too few users" if ends is None else f"[{ends.low:.2f}, {ends.high:.2f}]"
        return (
            f"{len(self.clicks_N):,} impressions at the first place: {self.clicks_N.sum():.0f} clicks, "
            f"{self.probabilities_N.sum():.1f} predicted, {found.value:.2f} {interval}\n{versions}"
        )


def ask(mesh: Mesh, shown: pa.Table, last_part: float) -> Asked:
    """Ask about each impression of the last part that stood first, and report it as clicked on or as seen.

    What stood first is what a request for one item shows, so the mesh learns each of them at the place where it was.

    Args:
        shown: as `logs.impressions` returns them.
        last_part: share of the impressions, the newest.
    """
    rows = [row for row in shown.slice(round(len(shown) * (1.0 - last_part))).to_pylist() if row["position"] == 1]
    probabilities, clicks, users, versions, num_degraded = [], [], [], [], 0
    numbers: dict[str, int] = {}
    for row in rows:
        context = {name: row[name] for name in (*USER_FEATURES, "affinity")}
        answer = mesh.recommend(row["user_id"], [row["item_id"]], 1, context=context)
        mesh.feedback(Feedback(answer.request_id, row["user_id"], row["kind"], item_id=row["item_id"]))
        if answer.degraded_reason:
            num_degraded += 1
            continue
        probabilities.append(answer.items[0].task_scores[answer.task_names.index(TASK)])
        clicks.append(float(row["kind"] == "click"))
        users.append(numbers.setdefault(row["user_id"], len(numbers)))
        versions.append(answer.model_version)
    return Asked(
        np.asarray(probabilities, np.float64),
        np.asarray(clicks, np.float64),
        np.asarray(users, np.int64),
        num_degraded,
        *((versions[0], versions[-1]) if versions else ("none", "none")),
    )
