"""Settings of the operator's commands."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.platform.settings import ArtifactUrl, FeatureSpecSettings, KafkaWriterSettings


class OperateSettings(FeatureSpecSettings, KafkaWriterSettings):
    """Where the mesh is and how long its answers are waited for. Environment prefix TUNEMESH_OPERATE_.

    An empty address means that of the mesh in the run folder or, when none is up there, the loopback port that compose publishes.
    """

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_OPERATE_")

    kafka_bootstrap_servers: str = Field("", validation_alias="KAFKA_BOOTSTRAP_SERVERS")
    """Comma-separated host:port list."""
    artifacts_url: ArtifactUrl = Field("", validation_alias="TUNEMESH_ARTIFACTS_URL")
    """fsspec URL of checkpoints; empty: those of the mesh in the run folder."""
    router_target: str = ""
    """gRPC target of the router."""
    trainer_target: str = ""
    """gRPC target of the trainer's control API."""
    tuner_target: str = ""
    """gRPC target of the tuner."""
    llm_admin_target: str = ""
    """gRPC target of the llm's private port."""
    prompt_assembler_target: str = ""
    """gRPC target of the prompt assembler."""
    retriever_target: str = ""
    """gRPC target of the retriever."""
    rpc_timeout_ms: int = Field(10_000, ge=100)
    """A call without an answer for so long has failed."""
    restore_timeout_ms: int = Field(300_000, ge=1_000)
    """As rpc_timeout_ms, for the restoring of a checkpoint and the loading of an adapter."""
    wait_ms: int = Field(30_000, ge=0)
    """How long a rollback waits until the mesh answers with its target."""
    kafka_timeout_ms: int = Field(30_000, ge=1_000)
    """A broker that does not answer for so long has failed."""
    scan_before_ms: int = Field(60_000, ge=0)
    """`why` looks for a request from this long before its id was made (clocks differ)."""
    scan_after_ms: int = Field(3_600_000, ge=1_000)
    """`why` looks for a request, and for what followed, up to this long after its id was made."""
    scan_records: int = Field(500_000, ge=1)
    """Most records that `why` reads of one topic; the answer says when that was too few."""
