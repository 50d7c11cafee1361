"""Settings of the feature stream and of its backfill."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.platform.settings import FeatureSpecSettings, RedisSettings
from streams.settings import StreamSettings


class FeaturesSettings(RedisSettings, FeatureSpecSettings, StreamSettings):
    """Environment prefix TUNEMESH_FEATURES_."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_FEATURES_")

    port: int = Field(50057, ge=0, le=65535)
    """Port of the health server."""
    flush_interval_ms: int = Field(50, ge=1, le=1_000)
    """Acts are gathered for so long before they are written to Redis together."""
    max_batch: int = Field(500, ge=1)
    """Most acts written together."""
    cached_states: int = Field(50_000, ge=1_000)
    """States of each kind (users, items, neighbour lists) kept in memory per partition, so that they are not read again."""
