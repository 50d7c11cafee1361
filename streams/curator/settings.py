"""Settings of the curator."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from streams.partitioned.settings import PartitionedSettings


class CuratorSettings(PartitionedSettings):
    """Environment prefix TUNEMESH_CURATOR_."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_CURATOR_")

    port: int = Field(50063, ge=0, le=65535)
    """Port of the health server."""
    window_ms: int = Field(7 * 24 * 3_600_000, ge=100)
    """For so long after its end an answer takes feedback, by default 7 days. A worker that takes over on another host finds those answers
    that generations.v1 still has."""
    store_dir: Path = Path("build/curator")
    """Folder of the answers that may still get feedback, a file for each partition; made again from the log when it is lost."""
    max_store_bytes: int = Field(1024 * 1024 * 1024, ge=1024 * 1024)
    """Size of those answers, shared evenly by the user partitions; beyond it the oldest go early, which is counted."""
    wait_ms: int = Field(60_000, ge=0)
    """For so long feedback waits for its answer; then it is an orphan."""
    delivery_timeout_ms: int = Field(5_000, ge=100)
    """Kafka counts as down when it has not acknowledged for so long; what is to be written then waits."""
