import json
import math

import numpy as np
import pytest

from services.common.platform.errors import CorruptArtifact
from services.tuner.lora_norms import update_norms

A, B = np.arange(12, dtype=np.float32).reshape(2, 6) / 7, np.arange(8, dtype=np.float32).reshape(4, 2) / 3


def write(folder, tensors, config=None, dtypes=None):
    header, raw = {"__metadata__": {"format": "pt"}}, b""
    for name, values in tensors.items():
        dtype = (dtypes or {}).get(name, "F32")
        if dtype == "BF16":
            data = (np.ascontiguousarray(values, dtype="<f4").view("<u4") >> 16).astype("<u2").tobytes()
        else:
            data = values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(raw), len(raw) + len(data)]}
        raw += data
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw)
    (folder / "adapter_config.json").write_text(json.dumps(config or {"r": 2, "lora_alpha": 4}))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_norm_is_that_of_the_product_in_each_dtype(tmp_path, dtype):
    names = {"x.q.lora_A.weight": A, "x.q.lora_B.weight": B}
    write(tmp_path, names, dtypes=dict.fromkeys(names, dtype))
    assert update_norms(tmp_path) == {"x.q": pytest.approx(2 * np.linalg.norm(B @ A), rel=0.02)}


def test_rslora_scales_by_the_root_and_what_is_not_finite_stays_so(tmp_path):
    write(tmp_path, {"q.lora_A.weight": A, "q.lora_B.weight": B}, {"r": 2, "lora_alpha": 4, "use_rslora": True})
    assert update_norms(tmp_path)["q"] == pytest.approx(4 / math.sqrt(2) * np.linalg.norm(B @ A))
    write(tmp_path, {"q.lora_A.weight": A, "q.lora_B.weight": np.full((4, 2), np.nan)})
    assert math.isnan(update_norms(tmp_path)["q"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "adapter_config.json").write_text("{"),
        lambda folder: (folder / "adapter_config.json").write_text('{"r": 0, "lora_alpha": 1}'),
        lambda folder: (folder / "adapter_config.json").write_text("[]"),
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b""),
        lambda folder: (folder / "adapter_model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}"),
        lambda folder: (folder / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]"),
        lambda folder: (folder / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes()[:-4]),
        lambda folder: write(folder, {"q.lora_A.weight": A}),
        lambda folder: write(folder, {"q.lora_A.weight": A, "q.lora_B.weight": B.T}),
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
    ],
)
def test_a_file_that_lies_is_corrupt_and_nothing_else(tmp_path, damage):
    write(tmp_path, {"q.lora_A.weight": A, "q.lora_B.weight": B})
    damage(tmp_path)
    with pytest.raises(CorruptArtifact):
        update_norms(tmp_path)
