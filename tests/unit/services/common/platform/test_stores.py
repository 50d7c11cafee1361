"""A store that does not answer now is no wrong setting, no absent artifact and no empty folder."""

from __future__ import annotations

import errno
import ftplib
import socket
import uuid
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem
from tunemesh.events.v1.delta_pb2 import RowDtype

from services.common.language.lora_store import AdapterStore
from services.common.platform.artifacts import Manifest, delete_artifact, list_artifacts, read_artifact, read_manifest, write_artifact
from services.common.platform.errors import ConfigurationError, NotFound, Unavailable
from services.common.platform.stores import NoSuchStore, check_store, open_store
from services.prompt_assembler.store import FileTemplateStore
from services.trainer.bases import BaseStore
from services.trainer.checkpoint_writer import CheckpointWriter
from services.trainer.checkpoints import CheckpointStore, Counters, Retention
from services.trainer.merge import Position

NO_STORES = ["nosuch://bucket/x", "simplecache::nosuch://bucket/x", "sftp://host/x"]
MANIFEST = Manifest(kind="base", model="ranker", schema_hash="abc", lineage_id="l1", epoch=1, seq=-1)
CUT = {"passed_over": (), "lineage_id": "l1", "epoch": 1, "base_id": "", "row_dtype": 1, "delta_offset": 0, "restored": None}
CHECKPOINT = {"seq": 0, "within_seq": 0, "counters": Counters(), "dedup": {}}
WAYS = {
    "list_artifacts": list_artifacts,
    "read_manifest": read_manifest,
    "read_artifact": lambda url: read_artifact(url, expect_schema_hash=None),
    "write_artifact": lambda url: write_artifact(url, MANIFEST, {"x": np.zeros(1)}),
    "delete_artifact": delete_artifact,
    "adapters": lambda url: AdapterStore(url).names(),
    "an adapter": lambda url: AdapterStore(url).manifest("base--task--v1"),
}
DOWN = [ConnectionResetError(errno.ECONNRESET, "reset"), EOFError(), ftplib.error_temp("421 too many connections"), TimeoutError()]


class UnsteadyStore(MemoryFileSystem):
    """fsspec's store in memory; while `failure` is set, whatever asks it something gets that. `exists` and `isdir` are fsspec's own."""

    protocol = "unsteady"
    failure: Exception | None = None
    exists, isdir = AbstractFileSystem.exists, AbstractFileSystem.isdir

    def info(self, path, **options):
        return self._unless_down(super().info, path, **options)

    def ls(self, path, detail=True, **options):
        return self._unless_down(super().ls, path, detail=detail, **options)

    def _open(self, path, mode="rb", **options):
        return self._unless_down(super()._open, path, mode=mode, **options)

    def _unless_down(self, answer, *args, **options):
        if self.failure is not None:
            raise self.failure
        return answer(*args, **options)


@pytest.fixture
def unsteady(monkeypatch) -> str:
    fsspec.register_implementation("unsteady", UnsteadyStore, clobber=True)
    monkeypatch.setattr(UnsteadyStore, "failure", None)
    return f"unsteady://{uuid.uuid4().hex}"


@pytest.fixture
def closed_port():
    """Give an FTP URL whose port is taken and listened on by nobody: connections are refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"ftp://127.0.0.1:{taken.getsockname()[1]}/artifacts"


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_is_down_for_a_moment_is_unavailable(way, closed_port):
    with pytest.raises(Unavailable, match=r"does not answer.*refused"):
        WAYS[way](closed_port)


async def test_templates_of_a_server_that_is_down_are_unavailable(closed_port):
    store = FileTemplateStore(closed_port, [], check_s=1.0, monotonic_s=lambda: 0.0)
    with pytest.raises(Unavailable, match="does not answer"):
        await store.get("answer", 1)
    with pytest.raises(Unavailable, match="does not answer"):
        await store.versions("answer")


@pytest.mark.parametrize("failure", DOWN, ids=repr)
def test_a_store_that_fails_in_the_middle_is_neither_empty_nor_absent(unsteady, failure, monkeypatch):
    write_artifact(f"{unsteady}/bases/base-1", MANIFEST, {"x": np.zeros(1)})
    assert list_artifacts(f"{unsteady}/bases") == [f"{unsteady}/bases/base-1"]
    monkeypatch.setattr(UnsteadyStore, "failure", failure)
    for way in WAYS.values():
        with pytest.raises(Unavailable):
            way(f"{unsteady}/bases")


@pytest.mark.parametrize("url", NO_STORES)
def test_a_url_of_no_known_store_is_a_wrong_setting(url):
    with pytest.raises(NoSuchStore, match="in no store that this program knows"):
        check_store(url)
    with pytest.raises(NoSuchStore, match="in no store that this program knows"):
        open_store(url)
    with pytest.raises(ConfigurationError, match="set TUNEMESH_ARTIFACTS_URL"):
        list_artifacts(url)
    with pytest.raises(ConfigurationError):
        AdapterStore(url)
    # In a topic it is the address of an artifact that nobody can have.
    with pytest.raises(NotFound):
        read_manifest(url)


@pytest.mark.parametrize("url", ["", "folder", "file:///folder", "memory://x", "simplecache::memory://x", "ftp://nobody.invalid/x"])
def test_a_store_is_checked_without_reaching_for_it(url):
    check_store(url)


def checkpoints_at(url: str, *, keep: int) -> CheckpointStore:
    return CheckpointStore(
        url, model="ranker", schema_hash="abc", retention=Retention(keep=keep, history_interval_ms=3_600_000, history_keep=10)
    )


def test_a_checkpoint_is_kept_though_the_store_was_down_when_its_manifest_was_looked_at(unsteady, monkeypatch):
    folder = f"{unsteady}/checkpoints"
    for number in range(4):
        kind = Manifest(
            kind="checkpoint", model="ranker", schema_hash="abc", lineage_id="l1", epoch=1, seq=0, created_at_ms=number * 3_600_000
        )
        write_artifact(f"{folder}/checkpoint-000001-{number:06d}", kind, {})
    store = checkpoints_at(unsteady, keep=1)
    monkeypatch.setattr(UnsteadyStore, "failure", ConnectionResetError("reset"))
    with pytest.raises(Unavailable):
        store._look_at([f"{folder}/checkpoint-000001-000000"])
    monkeypatch.setattr(UnsteadyStore, "failure", None)
    store._prune()
    assert len(list_artifacts(folder)) == 4


def test_a_checkpoint_that_finds_its_store_down_is_an_error_for_the_log_and_the_trainer_goes_on(closed_port):
    writer = CheckpointWriter(lambda: None)
    cut = SimpleNamespace(arrays={}, cut=SimpleNamespace(position=Position(()), name="checkpoint-000001-000001", **CUT), **CHECKPOINT)
    epoch = SimpleNamespace(
        stores=SimpleNamespace(checkpoints=checkpoints_at(closed_port, keep=1)),
        merge=SimpleNamespace(position=SimpleNamespace(offsets=[1])),
        publisher=SimpleNamespace(refusal=""),
        refusal_of=lambda _: "",
        cut=lambda: cut,
        now_ms=lambda: 1,
    )
    writer.start(epoch)
    failed = writer.wait()
    writer.close()
    assert isinstance(failed, Unavailable) and "does not answer" in str(failed)
    assert not writer.is_writing and writer.last_url == ""


def test_a_base_that_is_announced_counts_though_older_ones_cannot_be_deleted(closed_port, caplog):
    BaseStore(closed_port, model="ranker", schema_hash="abc", row_dtype=RowDtype.ROW_DTYPE_FP32, keep=1).prune("base-000001-000001", "L")
    assert "older bases are deleted after the next one" in caplog.text
