"""How large an adapter's updates are, from its files: for adapters whose training this process did not see. Imports no torch.

Reads safetensors (an 8-byte length, a JSON header with name, dtype, shape and place of each tensor, then the bytes) in the dtypes that
LoRA weights have. The files may come from elsewhere: whatever they claim is checked before it is read.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from services.common.language.adapter_manifest import CONTENT_FILES
from services.common.platform.errors import CorruptArtifact

_CONFIG, _WEIGHTS = CONTENT_FILES
_MAX_HEADER_BYTES = 16 * 1024 * 1024
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "F64": np.dtype("<f8")}


def update_norms(folder: Path) -> dict[str, float]:
    """Return the Euclidean norm of each layer's update, alpha / rank · B·A, by layer name, without building the product.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors as peft writes them.
    Raises:
        CorruptArtifact: a file cannot be understood, or a layer has one matrix without the other.
    """
    try:
        config: Any = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        rank, alpha = float(config["r"]), float(config["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise CorruptArtifact(f"{folder / _CONFIG} cannot be understood: {error!r}") from error
    tensors = _tensors(folder / _WEIGHTS)
    norms = {}
    for name, a_RI in tensors.items():
        if ".lora_A." not in name:
            continue
        b_OR = tensors.get(name.replace(".lora_A.", ".lora_B."))
        if b_OR is None or a_RI.ndim != 2 or b_OR.ndim != 2 or b_OR.shape[1] != a_RI.shape[0]:
            raise CorruptArtifact(f"{folder / _WEIGHTS}: {name} has no lora_B that fits")
        # ‖B·A‖² is the trace of (BᵀB)(AAᵀ): two products of rank by rank.
        squared = float(np.sum((b_OR.T @ b_OR) * (a_RI @ a_RI.T)))
        norms[name.split(".lora_A.")[0]] = scale * math.sqrt(0.0 if squared < 0 else squared)
    return norms


def _tensors(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    try:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        length = int.from_bytes(raw[:8].tobytes(), "little")
        if not 2 <= length <= min(_MAX_HEADER_BYTES, len(raw) - 8):
            raise CorruptArtifact(f"{path} is no safetensors file: its header claims {length} bytes")
        header: Any = json.loads(raw[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        return {name: _tensor(raw[8 + length :], entry) for name, entry in header.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptArtifact(f"{path} cannot be understood: {error!r}") from error


def _tensor(raw: npt.NDArray[np.uint8], entry: Any) -> npt.NDArray[np.float64]:
    begin, end = entry["data_offsets"]
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    if not 0 <= begin <= end <= len(raw) or end - begin != dtype.itemsize * math.prod(shape):
        raise ValueError(f"a tensor of shape {shape} does not lie in bytes {begin} to {end} of {len(raw)}")
    values = np.frombuffer(raw[begin:end].tobytes(), dtype=dtype)
    if entry["dtype"] == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    found: npt.NDArray[np.float64] = values.astype(np.float64).reshape(shape)
    return found
