"""Settings of the updater."""

from __future__ import annotations

import socket

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.platform.settings import ArtifactSettings, BaseServiceSettings, FeatureSpecSettings, KafkaSettings


class UpdaterSettings(BaseServiceSettings, KafkaSettings, FeatureSpecSettings, ArtifactSettings):
    """What the updater follows and where it writes."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_UPDATER_")

    port: int = Field(50055, ge=0, le=65535)
    """Port of the health server; 0 takes a free one."""
    replica_id: str = Field(default_factory=socket.gethostname, min_length=1, max_length=128)
    """Key of this host's records in replicas.v1; the host's name by default, since a host has one updater."""
    report_interval_ms: int = Field(1_000, ge=10)
    """How often replicas.v1 is told what is applied."""
    poll_ms: int = Field(200, ge=1)
    """Longest wait for a delta before anything else is looked at; a delta ends the wait."""
    check_interval_ms: int = Field(30_000, ge=100)
    """Within this time, all of the tables' memory is looked over for bits that changed by themselves; damaged tables are built again."""
    retry_ms: int = Field(1_000, ge=1)
    """Pause before the broker or the artifact store is tried again."""
