"""Settings of the feature stream and of its backfill."""

from __future__ import annotations

import socket

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.platform.settings import BaseServiceSettings, FeatureSpecSettings, KafkaSettings, RedisSettings


class FeaturesSettings(KafkaSettings, RedisSettings, FeatureSpecSettings, BaseServiceSettings):
    """Environment prefix TUNEMESH_FEATURES_."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_FEATURES_")

    port: int = Field(50057, ge=0, le=65535)
    """Port of the health server."""
    worker_id: str = Field(default_factory=socket.gethostname, min_length=1, max_length=64)
    """Name of this worker among the feature workers; by default that of its container or host. Keep it over restarts: a worker that comes
    back under its name gets its partitions at once. No two running workers may share it: they end each other."""
    flush_interval_ms: int = Field(50, ge=1, le=1_000)
    """Acts are gathered for so long before they are written to Redis together."""
    max_batch: int = Field(500, ge=1)
    """Most acts written together."""
    cached_states: int = Field(50_000, ge=1_000)
    """States of each kind (users, items, neighbour lists) kept in memory per partition, so that they are not read again."""
    session_timeout_ms: int = Field(6_000, ge=1_000)
    """A worker that is silent for so long loses its partitions to the others."""
