"""What the loads that ask a mesh about a log, and tell it what came of each row, need of it."""

from __future__ import annotations

from typing import Any, Protocol

from tunemesh_client import Feedback, Recommendation

TASK = "interact"
"""The task of their feature specs."""


class Mesh(Protocol):
    """What is needed of `tunemesh_client.Client`."""

    def recommend(self, user_id: Any, candidates: Any = ..., limit: int = ..., *, context: Any = ...) -> Recommendation:
        """Rank."""
        ...

    def feedback(self, feedback: Feedback) -> object:
        """Report."""
        ...
