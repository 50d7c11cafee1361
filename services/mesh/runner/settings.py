"""Settings of the runner and of the topic-creating job."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.platform.settings import KafkaSettings, Settings


class MeshSettings(Settings):
    """How the runner runs the mesh. Environment prefix TUNEMESH_MESH_."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_MESH_")

    compose_file: Path = Path("docker-compose.yml")
    """The description of the mesh."""
    run_dir: Path = Path("build/mesh")
    """Folder of the state, the logs and the volumes of one running mesh."""
    broker: Literal["tansu", "kafka"] = "tansu"
    """Embedded broker: tansu (in memory, nothing survives it) or kafka (from KAFKA_HOME, keeps its log in the run folder)."""
    kafka_home: Path | None = Field(None, validation_alias="KAFKA_HOME")
    """An unpacked Apache Kafka 4, for broker=kafka and for tests that need a durable broker."""
    start_timeout_ms: int = Field(300_000, ge=1_000)
    """Every service must have answered its health check this long after the start, or the start counts as failed."""
    backoff_initial_ms: int = Field(500, ge=10)
    """A service that died starts again after this; the pause doubles with each death in a row."""
    backoff_max_ms: int = Field(10_000, ge=10)
    """Longest pause between two starts."""
    backoff_reset_ms: int = Field(30_000, ge=10)
    """A service that has run this long is forgiven its earlier deaths."""


class TopicsSettings(KafkaSettings):
    """Settings of `python -m services.mesh topics`. Environment prefix TUNEMESH_TOPICS_."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_TOPICS_")

    shards: int = Field(1, ge=1)
    """Partitions of the delta topic."""
    replication_factor: int = Field(1, ge=1)
    """Copies of each partition; at most the number of brokers."""
    wait_ms: int = Field(30_000, ge=0)
    """How long an absent broker is waited for."""
