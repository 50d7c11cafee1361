"""Recall channel: the newest items, which nobody has taken yet."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from services.recommender.recall import Proposal, RecallRequest
from services.recommender.sources import Sources


class FreshChannel:
    """Nothing while the catalogue is empty."""

    name = "fresh"

    def __init__(self, sources: Sources) -> None:
        self._catalog = sources.catalog

    async def propose(self, request: RecallRequest, limit: int) -> Sequence[Proposal]:
        """Return some of the newest items, others for every user."""
        return fresh_items(self._catalog.newest(), request.user_id, limit=limit)


def fresh_items(newest: Sequence[str], user_id: str, *, limit: int) -> list[Proposal]:
    """Return up to `limit` of the newest items, starting at a place that depends on the user, so that every new item meets somebody."""
    if not newest:
        return []
    start = int.from_bytes(hashlib.blake2b(user_id.encode(), digest_size=8).digest(), "little") % len(newest)
    return [Proposal(item_id, "cold_start") for item_id in (*newest[start:], *newest[:start])][:limit]
