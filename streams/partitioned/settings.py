"""Settings that every stream of two joined topics has."""

from __future__ import annotations

import socket

from pydantic import Field

from services.common.platform.settings import BaseServiceSettings, KafkaSettings


class PartitionedSettings(KafkaSettings, BaseServiceSettings):
    """To be extended: a stream adds its prefix and its own."""

    worker_id: str = Field(default_factory=socket.gethostname, min_length=1, max_length=64)
    """Name of this worker among those of its stream; by default that of its container or host. Keep it over restarts: a worker that comes
    back under its name gets its partitions at once. No two running workers may share it: they end each other."""
    tick_interval_ms: int = Field(500, ge=20)
    """Pace of the ticks, at which windows close, records that wait are given up on, and offsets are committed. The same for all workers of
    a stream."""
    idle_allowance_ms: int = Field(300, ge=0)
    """How far events may be out of order, or still under way to the broker, when everything in it has been read."""
    max_pending_bytes: int = Field(256 * 1024 * 1024, ge=1024 * 1024)
    """Memory for what waits to be joined, shared evenly by the user partitions; beyond it the oldest is let go early, which is counted."""
    session_timeout_ms: int = Field(6_000, ge=1_000)
    """A worker that is silent for so long loses its partitions to the others."""
