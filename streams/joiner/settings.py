"""Settings of the joiner."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.platform.settings import BaseServiceSettings, FeatureSpecSettings, KafkaSettings


class JoinerSettings(KafkaSettings, FeatureSpecSettings, BaseServiceSettings):
    """Environment prefix TUNEMESH_JOINER_."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_JOINER_")

    port: int = Field(50056, ge=0, le=65535)
    """Port of the health server."""
    worker_id: str = Field("0", min_length=1, max_length=64)
    """Name of this worker among the joiners; keep it over restarts, and let no two running workers share it."""
    window_ms: int = Field(60_000, ge=100)
    """So long after its exposure an item without feedback becomes a negative; feedback waits so long for its exposure."""
    late_horizon_ms: int = Field(600_000, ge=0)
    """For so long after the window, feedback is still joined, as a new revision."""
    tick_interval_ms: int = Field(500, ge=20)
    """Pace of the ticks; the same for all joiners of a mesh."""
    idle_allowance_ms: int = Field(300, ge=0)
    """How far events may be out of order, or still under way to the broker, when everything in it has been read."""
    max_pending_bytes: int = Field(512 * 1024 * 1024, ge=1024 * 1024)
    """Memory for pending requests, shared evenly by the user partitions; beyond it the oldest windows close early, which is counted."""
    session_timeout_ms: int = Field(6_000, ge=1_000)
    """A worker that is silent for so long loses its partitions to the others."""
