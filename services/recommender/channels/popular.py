"""Recall channel: what everyone takes at present."""

from __future__ import annotations

from collections.abc import Sequence

from services.recommender.recall import Proposal, RecallRequest
from services.recommender.sources import Sources


class PopularChannel:
    """The same items for every user."""

    name = "popular"

    def __init__(self, sources: Sources) -> None:
        self._features = sources.features

    async def propose(self, request: RecallRequest, limit: int) -> Sequence[Proposal]:
        """Return the most popular items of the recent window; FeaturesUnavailable when they cannot be read."""
        if not request.has_features:
            return []
        return [Proposal(item_id, self.name) for item_id, _ in await self._features.popular(limit)]
