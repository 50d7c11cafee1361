"""Recall channel: items whose embeddings suit the user and the user's latest items."""

from __future__ import annotations

from collections.abc import Sequence

from services.recommender.recall import Proposal, RecallRequest
from services.recommender.sources import Sources


class EmbeddingChannel:
    """Nothing for a user without a row and without history."""

    name = "embedding"

    def __init__(self, sources: Sources) -> None:
        self._nearest = sources.nearest

    async def propose(self, request: RecallRequest, limit: int) -> Sequence[Proposal]:
        """Return the nearest items, nearest first."""
        return [Proposal(item_id, self.name) for item_id in await self._nearest.nearest(request.user_id, request.history, limit)]
