"""Settings of the prompt assembler."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.platform.settings import ArtifactSettings, BaseServiceSettings, KafkaSettings, ModelSettings


class PromptAssemblerSettings(BaseServiceSettings, KafkaSettings, ArtifactSettings, ModelSettings):
    """Environment prefix TUNEMESH_PROMPT_ASSEMBLER_."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_PROMPT_ASSEMBLER_")

    port: int = Field(50061, ge=0, le=65535)
    """Port of the gRPC API."""
    tokenizer_path: Path | None = None
    """The served model's tokenizer.json; unset: the one in the model's folder. Needed for a model that is named by its Hugging Face id."""
    llm_target: str = "127.0.0.1:50058"
    """gRPC target of the llm, which counts tokens while no tokenizer is here; empty: they are bounded by bytes."""
    tokenizer_check_ms: int = Field(2_000, ge=100)
    """How often a tokenizer that is not there yet is looked for. Until it is, tokens are estimated and answers say so."""
    store_check_ms: int = Field(1_000, ge=0)
    """For so long it is believed which versions the store has; a version that another replica added may be unknown meanwhile."""
    max_versions: int = Field(1_000, ge=1)
    """Most versions of one template."""
