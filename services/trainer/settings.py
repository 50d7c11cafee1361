"""Settings of the trainer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.events import topics
from services.common.platform.settings import ArtifactSettings, ArtifactUrl, BaseServiceSettings, FeatureSpecSettings, KafkaSettings
from services.trainer.plan import OnLineageChange
from services.trainer.quality_gate import QualityLimits


class TrainerSettings(BaseServiceSettings, KafkaSettings, FeatureSpecSettings, ArtifactSettings):
    """How the ranker worker learns, what it keeps and how it publishes."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_TRAINER_")

    port: int = Field(50054, ge=0, le=65535)
    """Port of the control API; 0 takes a free one."""
    initial_base: ArtifactUrl = ""
    """fsspec URL of a base that `python -m services.trainer.train` wrote: a trainer without checkpoints begins there. Empty: untrained."""
    on_lineage_change: OnLineageChange = "refuse"
    """When the newest checkpoint and the broker do not belong together: refuse to start, or adopt: keep the weights, forget the offsets."""
    batch_groups: int = Field(16, ge=1)
    """Sample groups per micro-batch, less at the end of a tick. An event makes two: its positive, and the negatives of its exposure."""
    dedup_window_samples: int = Field(2_000_000, ge=1)
    """Sample ids remembered at least. What a joiner may repeat is remembered beyond that, as far as its ticks say."""
    dedup_max_samples: int = Field(20_000_000, ge=1)
    """Sample ids remembered at most, 120 bytes each; beyond it, samples of older exposures are refused, and the log says so. It must hold
    what the joiner emits within its window and late horizon: the default is 30,000 samples a second for 11 minutes."""
    publish_interval_ms: int = Field(1_000, ge=10)
    """A delta, or a heartbeat, at least this often."""
    publish_gap_ms: int = Field(200, ge=10)
    """When all that came has been learned, a delta follows at once, but not sooner than so long after the last one, nor than ten times
    what the last one took to make. Equal to the interval: by the interval alone."""
    delta_dtype: Literal["fp32", "bf16", "int8"] = "fp32"
    """How rows travel to the replicas; dense weights are always fp32."""
    checkpoint_interval_ms: int = Field(30_000, ge=10)
    """A checkpoint this often, when something was learned."""
    keep_checkpoints: int = Field(3, ge=1)
    """The newest checkpoints are all kept."""
    history_interval_ms: int = Field(300_000, ge=1)
    """Of older checkpoints, the first in each interval of this length is kept: what RestoreCheckpoint can go back to."""
    history_keep: int = Field(36, ge=0)
    """So many of those: by default 3 hours of learning. Each is as large as all tables with their optimizer state."""
    base_interval_ms: int = Field(600_000, ge=10)
    """A base this often, when something was learned. A replica that cannot go on by deltas gets one at once, whatever this says."""
    keep_bases: int = Field(3, ge=1)
    """Older bases are deleted; a replica that starts needs the newest."""
    max_row_norm: float = Field(100.0, gt=0)
    """The publish gate refuses a delta with an embedding row above this norm."""
    max_dense_norm: float = Field(1_000.0, gt=0)
    """The publish gate refuses a delta with a dense tensor above this norm."""
    max_auc_drop: float = Field(0.05, gt=0)
    """The publish gate refuses scores whose AUC falls by more than this below what it was, beyond chance; `inf` switches this check off."""
    max_log_loss_rise: float = Field(0.1, gt=0)
    """The same for the log-loss, over that of a constant guess."""
    max_calibration_factor: float = Field(1.5, gt=1)
    """The same for sum of predictions over positives, as a factor further away from 1."""
    samples_topic: str = topics.SAMPLES.name
    """Where samples are read. The topic settings let two meshes share a broker."""
    deltas_topic: str = topics.RANKER_DELTAS.name
    """Where deltas are published."""
    bases_topic: str = topics.RANKER_BASES.name
    """Where pointers to bases are published."""
    replicas_topic: str = topics.REPLICAS.name
    """Where replicas say how far they are, and ask for a base."""
    control_topic: str = topics.CONTROL.name
    """Where lineage, epochs and aliases are kept."""
    dead_letters_topic: str = topics.SAMPLES.dlq
    """Where unusable samples are set aside."""

    @property
    def quality_limits(self) -> QualityLimits:
        """What the publish gate holds the quality of scores to."""
        return QualityLimits(
            auc_drop=self.max_auc_drop, log_loss_rise=self.max_log_loss_rise, calibration_factor=self.max_calibration_factor
        )
