"""Adapter names, manifests and the store, on a local folder and on an in-memory object store."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from services.common.language import lora_store
from services.common.language.adapter_manifest import CONTENT_FILES, AdapterManifest, AdapterVerdict, Metric, hash_content, verdict_from
from services.common.language.adapter_name import AdapterName, BadAdapterName, is_task
from services.common.language.lora_store import AdapterExists, AdapterNotFound, AdapterStore
from services.common.platform.errors import CorruptArtifact, InvalidInput

NAME = "SmolLM2-135M-Instruct--helpdesk--v1"


def manifest(name: str = NAME, **fields) -> AdapterManifest:
    parsed = AdapterName.parse(name)
    return AdapterManifest(name=name, base_model=parsed.base, task=parsed.task, **fields)


@pytest.fixture
def adapter(tmp_path) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"r": 16}')
    (folder / "adapter_model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "README.md").write_text("peft writes this too")
    return folder


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path) -> str:
    return str(tmp_path / "artifacts") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def test_a_name_is_parsed_and_written_back():
    name = AdapterName.parse(NAME)
    assert (name.base, name.task, name.version) == ("SmolLM2-135M-Instruct", "helpdesk", 1)
    assert str(name) == NAME
    assert str(name.next()) == "SmolLM2-135M-Instruct--helpdesk--v2"


@pytest.mark.parametrize(
    "text",
    [
        *["", "base", "a--b", "a--b--v0", "a--b--v01", "a--b--1", "a---b--v1", "a--b---v1", "a--b--c--v1"],
        *["../x--b--v1", "a/b--c--v1", "a--b--v1\n", "a--..--v1", ".a--b--v1"],
    ],
)
def test_what_is_no_name_is_refused(text):
    with pytest.raises(BadAdapterName):
        AdapterName.parse(text)


@pytest.mark.parametrize("text", ["a--b--v1234567890", "a" * 300 + "--b--v1"])
def test_a_name_has_a_longest_length(text):
    with pytest.raises(BadAdapterName):
        AdapterName.parse(text)


@pytest.mark.parametrize(("text", "expected"), [("helpdesk", True), ("help-desk_2", True), ("a--b", False), ("", False), ("a/b", False)])
def test_a_task_is_what_can_be_part_of_a_name(text, expected):
    assert is_task(text) is expected


def test_an_adapter_comes_back_as_it_was_published(url, adapter, tmp_path):
    store = AdapterStore(url)
    written = store.publish(
        NAME, adapter, manifest(metrics={"loss": Metric(value=0.5, low=0.4, high=0.6, num_samples=10)}, replay_share=0.25)
    )
    assert written.content_hash == hash_content(adapter)
    folder = store.fetch(NAME, tmp_path / "cache")
    assert {path.name for path in folder.iterdir()} == {*CONTENT_FILES, "manifest.json"}
    assert hash_content(folder) == written.content_hash
    assert AdapterStore(url).manifest(NAME) == written


def test_a_name_is_never_used_twice(url, adapter):
    store = AdapterStore(url)
    first = store.publish(NAME, adapter, manifest())
    (adapter / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(AdapterExists):
        store.publish(NAME, adapter, manifest())
    assert store.manifest(NAME) == first


def test_of_two_writers_at_the_same_moment_one_wins_and_nothing_is_mixed(adapter, tmp_path, monkeypatch):
    store = AdapterStore(tmp_path / "artifacts")
    monkeypatch.setattr(lora_store, "is_there", lambda filesystem, path: False)
    store.publish(NAME, adapter, manifest(num_examples=1))
    with pytest.raises(AdapterExists):
        store.publish(NAME, adapter, manifest(num_examples=2))
    assert store.manifest(NAME).num_examples == 1
    assert [path.name for path in (tmp_path / "artifacts" / "adapters").iterdir()] == [NAME]


def test_the_next_name_is_above_all_versions_of_its_base_and_task(url, adapter):
    store = AdapterStore(url)
    assert str(store.next_name("base", "helpdesk")) == "base--helpdesk--v1"
    for name in ("base--helpdesk--v9", "base--helpdesk--v10", "base--other--v12", "larger--helpdesk--v20"):
        store.publish(name, adapter, manifest(name))
    assert str(store.next_name("base", "helpdesk")) == "base--helpdesk--v11"
    assert [str(name) for name in store.names("helpdesk")] == ["base--helpdesk--v9", "base--helpdesk--v10", "larger--helpdesk--v20"]


def test_a_folder_without_a_manifest_is_no_adapter(url, adapter):
    filesystem, path = fsspec.url_to_fs(url)
    filesystem.makedirs(f"{path}/adapters/{NAME}", exist_ok=True)
    filesystem.pipe_file(f"{path}/adapters/{NAME}/adapter_config.json", b"{}")
    store = AdapterStore(url)
    assert store.names() == []
    with pytest.raises(AdapterNotFound):
        store.manifest(NAME)
    with pytest.raises(AdapterNotFound):
        store.fetch(NAME, "/nowhere")


def test_damaged_weights_are_not_handed_out(url, adapter, tmp_path):
    store = AdapterStore(url)
    store.publish(NAME, adapter, manifest())
    filesystem, path = fsspec.url_to_fs(url)
    filesystem.pipe_file(f"{path}/adapters/{NAME}/adapter_model.safetensors", b"weighty" * 1000)
    with pytest.raises(CorruptArtifact, match=r"its content is sha256:.* its manifest says sha256:"):
        store.fetch(NAME, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_copy_is_fetched_again_and_a_whole_one_is_kept(adapter, tmp_path):
    store = AdapterStore(tmp_path / "artifacts")
    store.publish(NAME, adapter, manifest())
    folder = store.fetch(NAME, tmp_path / "cache")
    written = (folder / "adapter_model.safetensors").stat().st_mtime_ns
    assert (store.fetch(NAME, tmp_path / "cache") / "adapter_model.safetensors").stat().st_mtime_ns == written
    (folder / "adapter_model.safetensors").write_bytes(b"half")
    assert hash_content(store.fetch(NAME, tmp_path / "cache")) == hash_content(adapter)


def test_a_manifest_that_is_another_adapters_or_of_an_unknown_format_is_refused(adapter, tmp_path):
    store = AdapterStore(tmp_path)
    with pytest.raises(InvalidInput, match="the manifest is of"):
        store.publish("base--other--v1", adapter, manifest())
    store.publish(NAME, adapter, manifest())
    path = tmp_path / "adapters" / NAME / "manifest.json"
    whole = path.read_text()
    for broken, reason in (
        (whole.replace('"format_version": 1', '"format_version": 2'), "format 2"),
        (whole.replace(NAME, "base--x--v1"), "is of base--x--v1"),
        (whole[:-20], "cannot be understood"),
        ("[]", "is not an object"),
        (whole.replace('"parent"', '"foreign"'), "cannot be understood"),
    ):
        path.write_text(broken)
        with pytest.raises(CorruptArtifact, match=reason):
            store.manifest(NAME)


def test_an_adapter_above_the_limit_is_neither_published_nor_fetched(adapter, tmp_path):
    with pytest.raises(InvalidInput, match="at most 100 are taken"):
        AdapterStore(tmp_path, max_bytes=100).publish(NAME, adapter, manifest())
    AdapterStore(tmp_path).publish(NAME, adapter, manifest())
    with pytest.raises(CorruptArtifact, match="at most 100 are taken"):
        AdapterStore(tmp_path, max_bytes=100).fetch(NAME, tmp_path / "cache")


def test_a_folder_without_weights_is_not_published(adapter, tmp_path):
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CorruptArtifact, match=r"no adapter_model\.safetensors"):
        AdapterStore(tmp_path / "artifacts").publish(NAME, adapter, manifest())


def test_only_a_verdict_that_was_undecided_gives_way_to_a_later_one(url, adapter):
    store = AdapterStore(url)
    store.publish(NAME, adapter, manifest())
    undecided = AdapterVerdict(name=NAME, accepted=False, is_undecided=True, refusals=("too few",), questions_needed=900)
    for verdict in (undecided, replace(undecided, questions_needed=300), AdapterVerdict(name=NAME, accepted=True)):
        store.write_verdict(verdict)
        assert store.verdict(NAME) == verdict
    with pytest.raises(AdapterExists):
        store.write_verdict(undecided)


def test_a_verdict_of_before_there_were_undecided_ones_is_read():
    fields = {"name": NAME, "accepted": False, "refusals": ["x"], "metrics": {}, "compared_with": "base", "decided_at_ms": 1}
    assert verdict_from(fields).outcome == "refused"


def test_the_gate_speaks_once_about_an_adapter(url, adapter):
    store = AdapterStore(url)
    store.publish(NAME, adapter, manifest())
    assert store.verdict(NAME) is None
    metrics = {"task": Metric(value=0.9, low=0.8, high=0.97, num_samples=30)}
    verdict = AdapterVerdict(name=NAME, accepted=False, refusals=("context slice 0.40 is below 0.57",), metrics=metrics, decided_at_ms=1)
    store.write_verdict(verdict)
    assert store.verdict(NAME) == verdict
    with pytest.raises(AdapterExists):
        store.write_verdict(verdict)
    with pytest.raises(AdapterNotFound):
        store.write_verdict(AdapterVerdict(name="base--x--v1", accepted=True))
