from __future__ import annotations

import pytest

from services.common.language.adapter_name import AdapterName
from services.common.language.base_model import PACKAGED_MODEL, base_hash, resolve
from services.common.platform.errors import ConfigurationError


def test_the_packaged_model_is_found_once_it_is_converted(tmp_path):
    with pytest.raises(ConfigurationError, match=r"services\.llm\.weights"):
        resolve(PACKAGED_MODEL, tmp_path)
    (tmp_path / PACKAGED_MODEL).mkdir()
    (tmp_path / PACKAGED_MODEL / "config.json").write_text("{}")
    model = resolve(PACKAGED_MODEL, tmp_path)
    assert (model.name, model.folder) == (PACKAGED_MODEL, str(tmp_path / PACKAGED_MODEL))
    assert model.tokenizer_file is None
    (tmp_path / PACKAGED_MODEL / "tokenizer.json").write_text("{}")
    assert resolve(PACKAGED_MODEL, tmp_path).tokenizer_file == tmp_path / PACKAGED_MODEL / "tokenizer.json"


@pytest.mark.parametrize(("text", "name"), [("org/Model-1.5B", "Model-1.5B"), ("org/a--b", "a-b"), ("org/model_v2.", "model_v2")])
def test_a_hugging_face_id_is_handed_on_and_its_name_can_be_part_of_an_adapters(text, name, tmp_path):
    model = resolve(text, tmp_path)
    assert (model.name, model.folder) == (name, text)
    assert AdapterName.first(model.name, "task").base == name


def test_a_folder_is_named_like_itself(tmp_path):
    folder = tmp_path / "my model--7B"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert resolve(str(folder), tmp_path).name == "my-model-7B"


@pytest.mark.parametrize("text", ["nonsense", "/no/such/folder", "a/b/c", ""])
def test_anything_else_is_a_configuration_error_that_names_the_variable(text, tmp_path):
    with pytest.raises(ConfigurationError, match="TUNEMESH_LLM_MODEL"):
        resolve(text, tmp_path)


def test_the_hash_of_a_base_tells_other_weights_or_another_configuration_under_the_same_name_apart(tmp_path):
    weights = bytes(range(256)) * 8_192
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(weights)
    known = base_hash(str(tmp_path))
    assert known == base_hash(str(tmp_path))
    assert known.startswith("sha256:")
    (tmp_path / "README.md").write_text("of no matter")
    assert base_hash(str(tmp_path)) == known
    for path, content in (
        ("config.json", b'{"a": 1}'),
        ("tokenizer.json", b"{}"),
        ("model.safetensors", weights[::-1]),
        ("model.safetensors", weights[:-1]),
        ("model.safetensors", weights[:-1] + b"x"),
    ):
        before = (tmp_path / path).read_bytes() if (tmp_path / path).exists() else None
        (tmp_path / path).write_bytes(content)
        assert base_hash(str(tmp_path)) != known, path
        (tmp_path / path).unlink() if before is None else (tmp_path / path).write_bytes(before)
    assert base_hash(str(tmp_path)) == known
    assert base_hash("org/Model") == ""
