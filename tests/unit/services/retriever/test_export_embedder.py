from __future__ import annotations

import hashlib
import os
import time

import pytest

from services.common.platform.errors import ConfigurationError
from services.retriever import export_embedder
from services.retriever.embedder_files import EmbedderStamp, Probe, read_stamp


def write_embedder(folder, *, export: int = 1, source: str = export_embedder.SOURCE_SHA256) -> None:
    folder.mkdir(parents=True)
    files = {"model.onnx": b"graph", "tokenizer.json": b"{}"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    stamp = EmbedderStamp(
        name="x",
        export=export,
        source_sha256=source,
        num_dims=2,
        max_tokens=256,
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        probes=(Probe(text="a", embedding=(0.6, 0.8)),),
    )
    (folder / "embedder.json").write_text(stamp.model_dump_json())


@pytest.fixture
def refuse(monkeypatch):
    def no_source():
        raise ConfigurationError("asked for the source")

    monkeypatch.setattr(export_embedder, "_source_folder", no_source)


def test_an_embedder_that_is_whole_is_kept(tmp_path, refuse):
    write_embedder(tmp_path / export_embedder.NAME)
    assert export_embedder.prepare(tmp_path) == tmp_path / export_embedder.NAME


@pytest.mark.parametrize("damage", ["missing", "changed", "older", "foreign", "stamp"])
def test_one_that_is_not_is_made_anew(tmp_path, refuse, damage):
    folder = tmp_path / export_embedder.NAME
    write_embedder(folder, export=0 if damage == "older" else 1, source="other" if damage == "foreign" else export_embedder.SOURCE_SHA256)
    if damage == "missing":
        (folder / "tokenizer.json").unlink()
    elif damage == "changed":
        (folder / "model.onnx").write_bytes(b"graph!")
    elif damage == "stamp":
        (folder / "embedder.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="asked for the source"):
        export_embedder.prepare(tmp_path)


def test_an_export_that_fails_leaves_the_old_folder_and_nothing_half_written(tmp_path, monkeypatch):
    folder = tmp_path / export_embedder.NAME
    write_embedder(folder, export=0)
    old_leftover = tmp_path / f".incomplete-{export_embedder.NAME}-dead"
    old_leftover.mkdir()
    os.utime(old_leftover, (time.time() - 7200,) * 2)

    def fail(source, into):
        (into / "model.onnx").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(export_embedder, "_source_folder", lambda: tmp_path)
    monkeypatch.setattr(export_embedder, "_export", fail)
    with pytest.raises(ConfigurationError, match="disk full"):
        export_embedder.prepare(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [export_embedder.NAME]
    assert read_stamp(folder).export == 0


def test_a_stamp_says_what_is_wrong_with_it(tmp_path):
    with pytest.raises(ConfigurationError, match="export_embedder"):
        read_stamp(tmp_path)
    (tmp_path / "embedder.json").write_text('{"name": 1}')
    with pytest.raises(ConfigurationError, match="damaged"):
        read_stamp(tmp_path)
