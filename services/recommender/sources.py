"""What recall channels draw from: everything that a channel may be made of. No I/O itself; server.py fills it in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.recommender.core import Catalog, FeatureStore, RecallLimits


class NearestItems(Protocol):
    """Nearest neighbours in the space of the embeddings."""

    async def nearest(self, user_id: str, history: Sequence[str], limit: int) -> Sequence[str]:
        """Return the items whose embeddings suit the user and the user's latest items best; empty when neither has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The recommender's collaborators that know items."""

    features: FeatureStore
    catalog: Catalog
    nearest: NearestItems
    limits: RecallLimits
