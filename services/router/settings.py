"""Settings of the router."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.events.limits import DEFAULT_CANDIDATES, MAX_CANDIDATES
from services.common.platform.settings import BaseServiceSettings, KafkaSettings


class RouterSettings(KafkaSettings, BaseServiceSettings):
    """Environment prefix TUNEMESH_ROUTER_."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_ROUTER_")

    port: int = Field(50051, ge=0, le=65535)
    """Port of the public gRPC API."""
    recommender_target: str = Field("127.0.0.1:50052", min_length=1)
    """gRPC target of the recommender, e.g. host:port or dns:///name:port."""
    retriever_target: str = Field("127.0.0.1:50060", min_length=1)
    """gRPC target of the retriever."""
    prompt_assembler_target: str = Field("127.0.0.1:50061", min_length=1)
    """gRPC target of the prompt assembler."""
    llm_target: str = Field("127.0.0.1:50058", min_length=1)
    """gRPC target of the llm."""
    default_deadline_ms: int = Field(1_000, ge=10)
    """Time for a Recommend whose caller set no deadline."""
    max_deadline_ms: int = Field(10_000, ge=10)
    """A longer deadline of Recommend is cut to this."""
    least_concurrent: int = Field(16, ge=1)
    """So many Recommends are always worked on at once, however long they take."""
    most_concurrent: int = Field(1_000, ge=1)
    """Never more than these; in between as many as are answered in time. Others are RESOURCE_EXHAUSTED at once."""
    latency_share: float = Field(0.5, gt=0, le=1)
    """Share of a Recommend's time within which nine tenths of the answers are to come while there are more requests than that."""
    generate_default_deadline_ms: int = Field(60_000, ge=10)
    """Time for a Generate, its last token included, whose caller set no deadline."""
    generate_max_deadline_ms: int = Field(300_000, ge=10)
    """A longer deadline of Generate is cut to this."""
    generate_max_tokens: int = Field(1_024, ge=1)
    """A Generate that asks for more tokens is INVALID_ARGUMENT."""
    retriever_timeout_ms: int = Field(1_000, ge=1)
    """An answer goes on without passages when the retriever took longer."""
    retriever_passages: int = Field(4, ge=1, le=50)
    """How many passages are asked for."""
    prompt_assembler_timeout_ms: int = Field(2_000, ge=1)
    """An answer goes on with the built-in prompt when the prompt assembler took longer."""
    llm_reconnect_ms: int = Field(2_000, ge=1)
    """How long a Generate whose first attempt found no llm waits for one before its second."""
    max_candidates: int = Field(DEFAULT_CANDIDATES, ge=1, le=MAX_CANDIDATES)
    """More candidates, or a larger limit, are INVALID_ARGUMENT."""
    default_limit: int = Field(20, ge=1)
    """Items returned when the request names neither a limit nor candidates."""
    variant: str = "default"
    """Name of the variant that answers while no experiment runs."""
    idempotency_ttl_ms: int = Field(60_000, ge=0)
    """How long the answer to an idempotency_key is kept for a retry."""
    idempotency_max_entries: int = Field(2_000, ge=1)
    """Most answers kept (about 20 KB each at 100 items); the oldest go first."""
    exposure_buffer: int = Field(10_000, ge=1)
    """Most exposures and generations that wait in memory; more are dropped and counted."""
    flush_interval_ms: int = Field(50, ge=0)
    """They are gathered for so long before they are sent to Kafka together."""
    delivery_timeout_ms: int = Field(3_000, ge=100)
    """Kafka counts as down when it has not acknowledged for so long; exposures and generations then go to the spool."""
    spool_dir: Path = Path("build/spool/router")
    """Folder of what waits for Kafka; one router per folder."""
    spool_max_bytes: int = Field(256 * 1024 * 1024, ge=1024 * 1024)
    """Largest spool; beyond it exposures and generations are dropped and counted."""
