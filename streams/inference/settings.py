"""Settings of the asynchronous door."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from streams.settings import StreamSettings


class InferenceSettings(StreamSettings):
    """Environment prefix TUNEMESH_INFERENCE_."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_INFERENCE_")

    port: int = Field(50066, ge=0, le=65535)
    """Port of the health server."""
    router_target: str = Field("127.0.0.1:50051", min_length=1)
    """gRPC target of the router."""
    max_running: int = Field(4, ge=1)
    """Most questions that are with the router at one time; what waits in Kafka leaves room for those who wait in person."""
    attempt_timeout_ms: int = Field(120_000, ge=100)
    """Longest time for one attempt."""
    max_attempts: int = Field(8, ge=1)
    """A question that the router could not answer so often goes to the dead letters."""
    first_pause_ms: int = Field(500, ge=1)
    """Pause after the first failed attempt; it doubles with each."""
    max_pause_ms: int = Field(30_000, ge=1)
    """Longest pause between attempts."""
    remembered_ms: int = Field(3_600_000, ge=0)
    """A repeated inference_id is answered once within so long."""
    remembered_ids: int = Field(100_000, ge=0)
    """Most answered inference_ids that are remembered (about 200 bytes each)."""
    delivery_timeout_ms: int = Field(5_000, ge=100)
    """Kafka counts as down when it has not acknowledged for so long; answers then wait."""
