"""Which recall channels there are: one row each. They take turns in this order, and an item's reasons stand in it."""

from __future__ import annotations

from collections.abc import Callable

from services.recommender.channels.embedding import EmbeddingChannel
from services.recommender.channels.fresh import FreshChannel
from services.recommender.channels.popular import PopularChannel
from services.recommender.channels.similar import SimilarChannel
from services.recommender.recall import RecallChannel
from services.recommender.sources import Sources

CHANNELS: tuple[Callable[[Sources], RecallChannel], ...] = (
    EmbeddingChannel,
    SimilarChannel,
    PopularChannel,
    FreshChannel,
)


def recall_channels(sources: Sources) -> tuple[RecallChannel, ...]:
    """Return every channel, made from `sources`."""
    return tuple(channel(sources) for channel in CHANNELS)
