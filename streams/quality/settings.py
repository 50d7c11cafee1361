"""Settings of the quality stream."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.platform.settings import BaseServiceSettings, FeatureSpecSettings, KafkaSettings


class QualitySettings(BaseServiceSettings, KafkaSettings, FeatureSpecSettings):
    """Environment prefix TUNEMESH_QUALITY_."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_QUALITY_")

    port: int = Field(50064, ge=0, le=65535)
    """Port of the health server."""
    metrics_port: int = Field(50065, ge=0, le=65535)
    """Port of the Prometheus metrics (HTTP, path /metrics); 0 takes a free one."""
    window_ms: int = Field(10_000, ge=500)
    """Length of a window, by wall clock."""
    recall_ms: int = Field(60_000, ge=0)
    """At the start, requests logged up to this long ago are read again, so that feedback about them finds its variant."""
    remembered_requests: int = Field(100_000, ge=1)
    """Requests whose variant is remembered for their feedback; the oldest go first. About 300 bytes each."""
    max_series: int = Field(32, ge=1)
    """Most (variant, model version) pairs in one window, and variants with a reference; the requests of further ones count as model version
    "other", and a further variant gets the reference's place of one that has had no traffic for 360 windows."""
    reference_windows: int = Field(6, ge=1)
    """The first so many windows of a variant that have min_requests are what later ones are compared with."""
    reference_path: Path | None = None
    """File of the reference (JSON): read at the start when it exists, written when a reference is complete. Unset: memory only."""
    psi_bins: int = Field(10, ge=2, le=100)
    """Bins of equal frequency per feature."""
    min_requests: int = Field(20, ge=1)
    """A window with fewer requests gets no PSI, is in no reference, and its ratios raise no alarm."""
    max_rows: int = Field(5_000, ge=100)
    """Item rows per window that go into the PSI; of one request at most 20."""
    drift_limit: float = Field(0.25, gt=0)
    """A PSI above it is an alarm when it is above chance too."""
    degraded_limit: float = Field(0.2, ge=0, le=1)
    """A share of degraded answers above it is an alarm."""
    orphan_limit: float = Field(0.05, ge=0, le=1)
    """A share of feedback without its exposure above it is an alarm."""
    orphan_span_ms: int = Field(600_000, ge=1_000)
    """The time up to now that this share is taken of. Several times the joiner's window, after which feedback is an orphan."""
    watermark_limit_ms: int = Field(90_000, ge=100)
    """A replica whose weights are older than this is an alarm. More than a restart of the joiner or the trainer takes."""
    forget_replica_ms: int = Field(600_000, ge=1_000)
    """A replica that has not reported for so long is gone for good, and no alarm any more."""
