"""Recall channel: what the same users took together with the user's latest items."""

from __future__ import annotations

from collections.abc import Sequence

from services.common.ranker.recall_state import Counted, add_up
from services.recommender.recall import Proposal, RecallRequest
from services.recommender.sources import Sources


class SimilarChannel:
    """Nothing for a user without history."""

    name = "similar"

    def __init__(self, sources: Sources) -> None:
        self._features, self._num_seeds = sources.features, sources.limits.seeds

    async def propose(self, request: RecallRequest, limit: int) -> Sequence[Proposal]:
        """Return the items most often taken with the latest ones; FeaturesUnavailable when they cannot be read."""
        seeds = request.history[: self._num_seeds]
        return similar_items(await self._features.neighbours(seeds), limit=limit) if seeds else []


def similar_items(neighbours_by_seed: Sequence[tuple[str, Sequence[Counted]]], *, limit: int) -> list[Proposal]:
    """Return the items most often taken together with the seeds, best first.

    Args:
        neighbours_by_seed: (seed item id, its neighbours with counts) of the user's latest items. Counts of one item under several seeds
            add up; the reason names the seed that contributes most.
        limit: most items to return.
    """
    seeds = {seed for seed, _ in neighbours_by_seed}
    strongest: dict[str, Counted] = {}
    for seed, neighbours in neighbours_by_seed:
        for item_id, count in neighbours:
            if item_id not in strongest or count > strongest[item_id][1]:
                strongest[item_id] = (seed, count)
    best = add_up([neighbours for _, neighbours in neighbours_by_seed], limit + len(seeds))
    return [Proposal(item_id, f"similar_to:{strongest[item_id][0]}") for item_id, _ in best if item_id not in seeds][:limit]
