"""Settings that every stream of two joined topics has."""

from __future__ import annotations

from pydantic import Field

from streams.settings import StreamSettings


class PartitionedSettings(StreamSettings):
    """To be extended: a stream adds its prefix and its own."""

    tick_interval_ms: int = Field(500, ge=20)
    """Pace of the ticks, at which windows close, records that wait are given up on, and offsets are committed. The same for all workers of
    a stream."""
    idle_allowance_ms: int = Field(300, ge=0)
    """How far events may be out of order, or still under way to the broker, when everything in it has been read."""
    max_pending_bytes: int = Field(256 * 1024 * 1024, ge=1024 * 1024)
    """Memory for what waits to be joined, shared evenly by the user partitions; beyond it the oldest is let go early, which is counted."""
