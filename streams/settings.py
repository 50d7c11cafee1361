"""Settings that every worker of a consumer group has."""

from __future__ import annotations

import socket

from pydantic import Field

from services.common.platform.settings import BaseServiceSettings, KafkaSettings


class StreamSettings(KafkaSettings, BaseServiceSettings):
    """To be extended: a stream adds its prefix and its own."""

    worker_id: str = Field(default_factory=socket.gethostname, min_length=1, max_length=64)
    """Name of this worker among those of its stream; by default that of its container or host. Keep it over restarts: a worker that comes
    back under its name gets its partitions at once. No two running workers may share it: they end each other."""
    session_timeout_ms: int = Field(6_000, ge=1_000)
    """A worker that is silent for so long loses its partitions to the others."""
    strikes_dir: str = ""
    """Folder for the memory of which records the worker died on; it must outlive the process, not the machine. Empty: the system's folder
    for temporary files."""
