"""Settings of the llm service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.common.platform.settings import ArtifactStoreSettings, BaseServiceSettings, KafkaSettings, ModelSettings

# Those that vLLM has kernels for.
_LORA_RANKS = (8, 16, 32, 64, 128, 256)


class LlmSettings(ModelSettings, ArtifactStoreSettings, KafkaSettings, BaseServiceSettings):
    """Environment prefix TUNEMESH_LLM_."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_LLM_")

    port: int = Field(50058, ge=0, le=65535)
    """Port of the gRPC API."""
    admin_host: str = Field("127.0.0.1", min_length=1)
    """Address of the adapter API. It asks nobody who they are: keep it private."""
    admin_port: int = Field(50059, ge=0, le=65535)
    """Port of the adapter API."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type of weights and activations; "auto": bfloat16 on a GPU and on processors that compute it, else float32."""
    max_model_len: int = Field(2048, ge=64)
    """Most tokens of a prompt and its answer together."""
    max_num_seqs: int = Field(16, ge=1)
    """Most generations that the engine computes together."""
    max_waiting: int = Field(16, ge=0)
    """Most generations that wait for the engine beyond those; more are RESOURCE_EXHAUSTED."""
    max_tokens: int = Field(1024, ge=1)
    """Most tokens that one request may ask for."""
    default_max_tokens: int = Field(256, ge=1)
    """Tokens that a request gets at most when it does not say."""
    max_prompt_bytes: int = Field(256 * 1024, ge=1024)
    """Longest text of all messages together that is read at all; what is longer than the model's context is refused later."""
    kv_cache_gib: float = Field(0.0, ge=0.0)
    """Memory of the key-value cache; 0: what gpu_memory_utilization leaves on a GPU, 1 GiB on a CPU."""
    gpu_memory_utilization: float = Field(0.9, gt=0.0, le=1.0)
    """Share of the GPU's (or MIG slice's) memory that the engine takes. Without a GPU it has no effect."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs that share the model."""
    enforce_eager: bool = False
    """Neither compile nor capture CUDA graphs: a faster start, slower tokens. Without a GPU it has no effect while adapters are on."""
    cpu_threads: str = Field("all", min_length=1)
    """Without a GPU: "all" (a thread on every core that the process may use), "auto" (vLLM's choice: one core is left free), "nobind",
    or the engine's cores, such as "0-3"."""
    max_loras: int = Field(2, ge=0)
    """Most different adapters among the generations that are computed together; 0: no adapters at all."""
    max_cpu_loras: int = Field(4, ge=0)
    """Most adapters that are loaded: those that aliases point at, one that is being tried, and those kept for a rollback."""
    max_lora_rank: int = 16
    """Highest rank of an adapter: 8, 16, 32, 64, 128 or 256. The cost of every adapter grows with it."""
    adapters_dir: Path = Path("build/llm-adapters")
    """Folder of fetched adapters; of this process alone, which deletes those that it does not need any more."""
    alias_wait_ms: int = Field(3_000, ge=0)
    """How long a start waits for control.v1, so that health says SERVING with its adapters warm; then it serves without them."""
    adapter_timeout_ms: int = Field(60_000, ge=1_000)
    """How long the engine may take to load an adapter."""
    probe_interval_ms: int = Field(5_000, ge=100)
    """How often the engine is asked for a sign of life."""
    probe_timeout_ms: int = Field(60_000, ge=1_000)
    """An engine that gives none for so long counts as dead, and the process ends."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_lora_rank not in _LORA_RANKS:
            raise ValueError(f"TUNEMESH_LLM_MAX_LORA_RANK={self.max_lora_rank} is none of {', '.join(map(str, _LORA_RANKS))}")
        if self.max_cpu_loras < self.max_loras:
            raise ValueError(f"TUNEMESH_LLM_MAX_CPU_LORAS={self.max_cpu_loras} is below TUNEMESH_LLM_MAX_LORAS={self.max_loras}")
        if self.default_max_tokens > self.max_tokens:
            raise ValueError(
                f"TUNEMESH_LLM_DEFAULT_MAX_TOKENS={self.default_max_tokens} is above TUNEMESH_LLM_MAX_TOKENS={self.max_tokens}"
            )
        if "://" not in self.artifacts_url and self.adapters_dir.resolve().is_relative_to(Path(self.artifacts_url).resolve()):
            raise ValueError(
                f"TUNEMESH_LLM_ADAPTERS_DIR={self.adapters_dir} is inside TUNEMESH_ARTIFACTS_URL={self.artifacts_url}: "
                "fetched adapters are deleted again and need another folder"
            )
        return self


class AdminSettings(BaseServiceSettings):
    """Where the adapter API listens: LlmSettings' values in the shape that a gRPC server takes, under the names of their variables."""

    host: str = Field("127.0.0.1", min_length=1, validation_alias="TUNEMESH_LLM_ADMIN_HOST")
    """Host of the admin service, as in LlmSettings."""
    port: int = Field(50059, ge=0, le=65535, validation_alias="TUNEMESH_LLM_ADMIN_PORT")
    """Port of the admin service, as in LlmSettings."""

    @classmethod
    def of(cls, settings: LlmSettings) -> AdminSettings:
        """Return the admin side of the service's settings."""
        return cls(
            host=settings.admin_host,
            port=settings.admin_port,
            drain_grace_ms=settings.drain_grace_ms,
            max_message_bytes=settings.max_message_bytes,
            telemetry_dir=settings.telemetry_dir,
            telemetry_sample_ratio=settings.telemetry_sample_ratio,
            otlp_endpoint=settings.otlp_endpoint,
        )
