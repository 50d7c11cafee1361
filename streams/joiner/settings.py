"""Settings of the joiner."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.platform.settings import FeatureSpecSettings
from streams.partitioned.settings import PartitionedSettings


class JoinerSettings(FeatureSpecSettings, PartitionedSettings):
    """Environment prefix TUNEMESH_JOINER_."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_JOINER_")

    port: int = Field(50056, ge=0, le=65535)
    """Port of the health server."""
    tick_gap_ms: int = Field(100, ge=10)
    """The least time between two ticks. After feedback was joined a tick comes so soon; the more is joined, the later, at the interval at
    last. The same for all workers: a tick's number is a multiple of it."""
    window_ms: int = Field(60_000, ge=100)
    """So long after its exposure an item without feedback becomes a negative; feedback waits so long for its exposure."""
    late_horizon_ms: int = Field(600_000, ge=0)
    """For so long after the window, feedback is still joined, as a new revision."""
    max_pending_bytes: int = Field(512 * 1024 * 1024, ge=1024 * 1024)
    """Memory for pending requests, shared evenly by the user partitions; beyond it the oldest windows close early, which is counted."""
