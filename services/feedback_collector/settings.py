"""Settings of the feedback collector."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.platform.settings import BaseServiceSettings, KafkaSettings


class FeedbackCollectorSettings(KafkaSettings, BaseServiceSettings):
    """Environment prefix TUNEMESH_FEEDBACK_COLLECTOR_."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_FEEDBACK_COLLECTOR_")

    port: int = Field(50053, ge=0, le=65535)
    """Port of the gRPC API."""
    max_batch: int = Field(100, ge=1, le=10_000)
    """Most feedback items in one call."""
    delivery_timeout_ms: int = Field(5_000, ge=100)
    """Kafka counts as down when it has not acknowledged for so long; calls then get UNAVAILABLE at once until it is up again."""
    max_in_flight: int = Field(10_000, ge=1)
    """Most items that wait for Kafka's acknowledgement; more are RESOURCE_EXHAUSTED."""
    remembered_ids: int = Field(100_000, ge=0)
    """How many accepted acts are remembered, so that a repeat is answered without a second record (about 200 bytes each)."""
    remembered_ms: int = Field(600_000, ge=0)
    """How long an accepted act is remembered. Later repeats are written again, and the joiner ignores them."""
