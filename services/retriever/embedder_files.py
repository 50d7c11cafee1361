"""The embedder as files: what the exporter writes and the service reads. For both environments; knows no torch and no onnxruntime."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.common.platform.errors import ConfigurationError

MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
STAMP_FILE = "embedder.json"


class Probe(BaseModel):
    """A text and the embedding that the original model gives it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    text: str
    embedding: tuple[float, ...]


class EmbedderStamp(BaseModel):
    """What embedder.json says; written last."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    export: int
    source_sha256: str
    num_dims: int = Field(ge=1, le=8192)
    max_tokens: int = Field(ge=8, le=8192)
    files: dict[str, str]
    """SHA-256 by file name."""
    probes: tuple[Probe, ...]

    @property
    def version(self) -> str:
        """Names the embedder in index versions: embeddings of different versions must never be compared."""
        return self.files[MODEL_FILE][:8]


def read_stamp(folder: Path) -> EmbedderStamp:
    """Return what is in the folder.

    Raises:
        ConfigurationError: there is no embedder, or its stamp is damaged.
    """
    path = folder / STAMP_FILE
    try:
        stamp = EmbedderStamp.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        message = f"{folder} has no embedder: run `python -m services.retriever.export_embedder` in the ml environment first"
        raise ConfigurationError(message) from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigurationError(f"{path} is damaged: {error.errors()[0]['msg']}") from error
    if MODEL_FILE not in stamp.files:
        raise ConfigurationError(f"{path} is damaged: it does not name {MODEL_FILE}")
    return stamp
