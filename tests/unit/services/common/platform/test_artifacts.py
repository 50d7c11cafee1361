"""Artifacts on a local folder and on an object store (fsspec's memory store): whole, checked, never half there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import crc32c
import fsspec
import numpy as np
import pytest

from services.common.platform.artifacts import Manifest, delete_artifact, list_artifacts, read_artifact, read_manifest, write_artifact
from services.common.platform.errors import Conflict, CorruptArtifact, NotFound, Unavailable
from tests.fuzz.artifacts import fuzz_bases, fuzz_checkpoints

ARRAYS = {
    "table/user/ids": np.array([-(2**63), 0, 2**63 - 1]),
    "table/user/rows": np.arange(6, dtype=np.float32).reshape(3, 2),
    "dense/head.weight": np.asfortranarray(np.ones((2, 3), np.float32)),
    "empty": np.empty((0, 4), np.float32),
    "number": np.array(7),
}


def manifest(**fields) -> Manifest:
    values = {"kind": "base", "model": "ranker", "schema_hash": "abc", "lineage_id": "l1", "epoch": 1, "seq": -1}
    return Manifest(**values | fields)


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path) -> str:
    return str(tmp_path / "bases" / "base-1") if request.param == "local" else f"memory://{uuid.uuid4().hex}/base-1"


def damage(url: str, file: str, change) -> None:
    filesystem, path = fsspec.url_to_fs(url)
    content = change(filesystem.cat_file(f"{path}/{file}"))
    filesystem.pipe_file(f"{path}/{file}", content)


def flip_last_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def test_what_was_written_is_read_back(url):
    written = write_artifact(url, manifest(source_offsets=(3, 5), watermark_ms=12, metadata={"note": ["x", 1]}), ARRAYS)
    read, arrays = read_artifact(url, expect_schema_hash="abc", expect_lineage="l1", expect_manifest_crc32c=written.manifest_crc32c)
    assert read == written.manifest
    assert (read.source_offsets, read.metadata) == ((3, 5), {"note": ["x", 1]})
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)


def test_only_the_arrays_asked_for_are_read(url):
    write_artifact(url, manifest(), ARRAYS)
    damage(url, "arrays/dense/head.weight.npy", flip_last_bit)
    _, arrays = read_artifact(url, expect_schema_hash="abc", only=lambda name: name.startswith("table/"))
    assert sorted(arrays) == ["table/user/ids", "table/user/rows"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"expect_schema_hash": "other"}, "schema 'abc' is foreign"),
        ({"expect_lineage": "l2"}, "lineage 'l1' is not that of this broker"),
        ({"expect_manifest_crc32c": 1}, "expected 00000001"),
    ],
)
def test_a_foreign_artifact_is_refused_with_its_reason(url, options, reason):
    write_artifact(url, manifest(), ARRAYS)
    with pytest.raises(CorruptArtifact, match=reason):
        read_artifact(url, **{"expect_schema_hash": "abc"} | options)


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("arrays/table/user/rows.npy", flip_last_bit, "rows.npy is damaged"),
        ("arrays/table/user/rows.npy", lambda content: content[:-4], "rows.npy has .* truncated"),
        ("manifest.json", lambda content: content[:-10], "manifest.json cannot be understood"),
        ("manifest.json", lambda content: b"[]", "is not an object"),
        ("manifest.json", lambda content: content.replace(b'"format_version": 1', b'"format_version": 9'), "format version 9"),
        ("manifest.json", lambda content: content.replace(b'"epoch"', b'"epoche"'), "cannot be understood"),
        ("manifest.json", lambda content: content.replace(b"arrays/empty.npy", b"arrays/../../x.npy"), "cannot be part of it"),
    ],
)
def test_a_damaged_artifact_is_refused_with_its_reason(url, file, change, reason):
    write_artifact(url, manifest(), ARRAYS)
    damage(url, file, change)
    with pytest.raises(CorruptArtifact, match=reason):
        read_artifact(url, expect_schema_hash="abc")


def test_a_missing_file_is_named(url):
    write_artifact(url, manifest(), ARRAYS)
    filesystem, path = fsspec.url_to_fs(url)
    filesystem.rm(f"{path}/arrays/empty.npy")
    with pytest.raises(CorruptArtifact, match=r"empty\.npy is missing"):
        read_artifact(url, expect_schema_hash="abc")


def test_an_absent_artifact_is_not_found(url):
    with pytest.raises(NotFound, match=r"no READY artifact"):
        read_manifest(url)


def test_pickled_arrays_are_neither_written_nor_read(url):
    with pytest.raises(ValueError, match=r"[Oo]bject arrays"):
        write_artifact(url, manifest(), {"x": np.array([{}])})
    with pytest.raises(NotFound):
        read_manifest(url)


@pytest.mark.parametrize("name", ["../x", "/x", "x//y", "", ".hidden", "a b"])
def test_names_that_lead_elsewhere_are_refused(url, name):
    with pytest.raises(ValueError, match="array name"):
        write_artifact(url, manifest(), {name: np.zeros(1)})


def test_an_artifact_never_changes(url):
    write_artifact(url, manifest(), ARRAYS)
    with pytest.raises(Conflict, match="exists already"):
        write_artifact(url, manifest(epoch=2), ARRAYS)


def test_a_folder_without_a_manifest_is_replaced(url):
    filesystem, path = fsspec.url_to_fs(url)
    filesystem.makedirs(f"{path}/arrays", exist_ok=True)
    filesystem.pipe_file(f"{path}/arrays/stale.npy", b"x")
    write_artifact(url, manifest(), ARRAYS)
    assert not filesystem.exists(f"{path}/arrays/stale.npy")


def test_artifacts_are_listed_by_name_and_deleted(url):
    parent = url.rsplit("/", 1)[0]
    assert list_artifacts(parent) == []
    for name in ["base-2", "base-1"]:
        write_artifact(f"{parent}/{name}", manifest(), ARRAYS)
    assert list_artifacts(parent) == [f"{parent}/base-1", f"{parent}/base-2"]
    delete_artifact(f"{parent}/base-1")
    delete_artifact(f"{parent}/base-1")
    assert list_artifacts(parent) == [f"{parent}/base-2"]


def test_a_store_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match="cannot be written"):
        write_artifact(tmp_path / "file" / "base", manifest(), ARRAYS)


WRITER = """
import sys, numpy as np
from services.common.platform.artifacts import Manifest, write_artifact
for seq in range(1_000_000):
    arrays = {f"a/{i}": np.full(20_000, seq) for i in range(10)}
    manifest = Manifest(kind="checkpoint", model="m", schema_hash="s", lineage_id="l", epoch=1, seq=seq)
    write_artifact(f"{sys.argv[1]}/c-{seq:06d}", manifest, arrays)
    print(seq, flush=True)
"""


@pytest.mark.parametrize("delay_ms", [0, 3, 7, 13])
def test_a_writer_killed_at_any_moment_leaves_whole_artifacts_only(tmp_path, delay_ms):
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, env=child_environment()) as process:
        acknowledged = int(process.stdout.readline())
        time.sleep(delay_ms / 1000)
        os.kill(process.pid, signal.SIGKILL)
    urls = list_artifacts(tmp_path)
    assert len(urls) > acknowledged
    for url in urls:
        read, arrays = read_artifact(url, expect_schema_hash="s")
        assert len(arrays) == 10
        assert all(np.all(array == read.seq) for array in arrays.values())


def test_what_a_dead_writer_left_is_cleared_away_later(tmp_path):
    leftover = tmp_path / ".incomplete-c-1-xyz"
    leftover.mkdir()
    write_artifact(tmp_path / "c-2", manifest(), ARRAYS)
    assert leftover.exists()
    os.utime(leftover, (0, 0))
    write_artifact(tmp_path / "c-3", manifest(), ARRAYS)
    assert not leftover.exists()
    assert len(list_artifacts(tmp_path)) == 2


def child_environment() -> dict[str, str]:
    root = Path(__file__).parents[5]
    return os.environ | {"PYTHONPATH": f"{root}:{root / 'protos' / 'gen'}"}


def test_the_manifest_is_readable_json(tmp_path):
    write_artifact(tmp_path / "b", manifest(), ARRAYS)
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["files"]["arrays/empty.npy"]["size_bytes"] > 0


def test_damaged_checkpoints_and_bases_are_read_or_refused():
    """A seeded sample of tests/fuzz/test_artifacts.py."""
    assert fuzz_checkpoints(500, seed=1)["CorruptArtifact"] > 10
    assert fuzz_bases(500, seed=2)["CorruptArtifact"] > 10


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -8), }",
    ],
)
def test_an_array_whose_header_lies_is_refused_before_memory_is_taken(url, header):
    """The checksum is right: a broken writer made it."""
    write_artifact(url, manifest(), {"a": np.zeros(2, np.float32)})
    files, path = fsspec.url_to_fs(str(url))
    raw = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8)
    files.pipe_file(f"{path}/arrays/a.npy", raw)
    fields = json.loads(files.cat_file(f"{path}/manifest.json"))
    fields["files"]["arrays/a.npy"] = {"size_bytes": len(raw), "crc32c": crc32c.crc32c(raw)}
    files.pipe_file(f"{path}/manifest.json", json.dumps(fields).encode())
    with pytest.raises(CorruptArtifact, match=r"a\.npy is no array"):
        read_artifact(url, expect_schema_hash=None)
