"""Settings of the curator."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.platform.settings import BaseServiceSettings, KafkaSettings


class CuratorSettings(KafkaSettings, BaseServiceSettings):
    """Environment prefix TUNEMESH_CURATOR_."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_CURATOR_")

    port: int = Field(50063, ge=0, le=65535)
    """Port of the health server."""
    worker_id: str = Field("0", min_length=1, max_length=64)
    """Name of this worker among the curators; keep it over restarts, and let no two running workers share it."""
    window_ms: int = Field(3_600_000, ge=100)
    """For so long after its end an answer takes feedback."""
    wait_ms: int = Field(60_000, ge=0)
    """For so long feedback waits for its answer; then it is an orphan."""
    tick_interval_ms: int = Field(500, ge=20)
    """How often answers are retired, orphans given up and offsets committed."""
    idle_allowance_ms: int = Field(300, ge=0)
    """How far events may be out of order, or still under way to the broker, when everything in it has been read."""
    max_pending_bytes: int = Field(256 * 1024 * 1024, ge=1024 * 1024)
    """Memory for kept answers, shared evenly by the user partitions; beyond it the oldest are retired early, which is counted."""
    delivery_timeout_ms: int = Field(5_000, ge=100)
    """Kafka counts as away when it has not acknowledged for so long; what is to be written then waits."""
    session_timeout_ms: int = Field(6_000, ge=1_000)
    """A worker that is silent for so long loses its partitions to the others."""
