"""Settings of the recommender."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.events.limits import DEFAULT_CANDIDATES, MAX_CANDIDATES
from services.common.platform.settings import (
    ArtifactSettings,
    BaseServiceSettings,
    FeatureSpecSettings,
    KafkaSettings,
    RedisSettings,
    TritonSettings,
)


class RecommenderSettings(BaseServiceSettings, KafkaSettings, RedisSettings, TritonSettings, FeatureSpecSettings, ArtifactSettings):
    """How the recommender finds, scores and arranges items."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_RECOMMENDER_")

    port: int = Field(50052, ge=0, le=65535)
    """Port of the gRPC server; 0 takes a free one."""
    max_candidates: int = Field(DEFAULT_CANDIDATES, ge=1, le=MAX_CANDIDATES)
    """Most candidates in one request, and most items that recall hands to the ranker."""
    rules_path: Path = Path(__file__).with_name("rules.yaml")
    """The business-rules file; the one beside this module by default."""
    item_cache_ttl_ms: int = Field(500, ge=0)
    """Item states and stream-wide counters are read from Redis at most this often, and end together; users are always read fresh."""
    item_cache_size: int = Field(50_000, ge=0)
    """Item states kept; about 0.25 KB each."""
    redis_timeout_ms: int = Field(100, ge=1)
    """A Redis call that takes longer counts as failed."""
    redis_backoff_ms: int = Field(500, ge=0)
    """After a failed call, Redis is left alone for so long and answers say features_unavailable at once."""
    triton_timeout_ms: int = Field(500, ge=1)
    """A Triton call that takes longer counts as failed; a caller's shorter deadline wins."""
    recall_per_channel: int = Field(60, ge=1)
    """Most items that one recall channel proposes."""
    recall_total: int = Field(150, ge=1)
    """Most recalled items that are ranked."""
    recall_seeds: int = Field(5, ge=1)
    """The user's latest items whose neighbours are recalled."""
    cold_start_pool: int = Field(200, ge=0)
    """The newest items of the catalogue, of which each user is offered some."""
    neighbours_refresh_ms: int = Field(3_000, ge=100)
    """How often the item embeddings for nearest-neighbour recall are read anew, 50,000 of them each time, in turn."""
    catalog_wait_ms: int = Field(10_000, ge=0)
    """How long the start waits for the catalogue; after that answers say catalog_unavailable until it has been read."""
