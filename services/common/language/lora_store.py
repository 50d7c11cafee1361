"""LoRA adapters as immutable artifacts: the store that the tuner writes and the llm service reads.

    <artifacts>/adapters/SmolLM2-135M-Instruct--helpdesk--v1/
        adapter_config.json, adapter_model.safetensors      as peft writes them
        manifest.json                                       what it is, and the hash of the two; written last
        verdict.json                                        what the adapter gate said, once it has

On a local disk an adapter appears whole or not at all; elsewhere the manifest comes last, and a folder without one is no adapter.
Knows no torch, no peft and no vLLM.
"""

from __future__ import annotations

import dataclasses
import json
import os
import posixpath
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from services.common.language.adapter_manifest import (
    CONTENT_FILES,
    FORMAT_VERSION,
    AdapterManifest,
    AdapterVerdict,
    hash_content,
    manifest_from,
    to_json,
    verdict_from,
)
from services.common.language.adapter_name import AdapterName, BadAdapterName
from services.common.platform.errors import Conflict, CorruptArtifact, InvalidInput, NotFound
from services.common.platform.stores import check_store, is_folder, is_local, is_there, opened_store

_MANIFEST, _VERDICT = "manifest.json", "verdict.json"
_MAX_JSON_BYTES = 1024 * 1024
_TEMPORARY_PREFIX = ".incomplete-"
# No copy takes this long: what is older was left by a process that died.
_STALE_AFTER_S = 3600.0


class AdapterNotFound(NotFound):
    """No adapter of this name is in the store. Retrying does not help."""


class AdapterExists(Conflict):
    """The name is taken. Take the next version."""


class AdapterStore:
    """The adapters under an artifacts URL (fsspec). Every method blocks: call it off the event loop."""

    def __init__(self, artifacts_url: str | Path, *, max_bytes: int = 2 * 1024**3) -> None:
        """Nothing is touched before the first call.

        Args:
            artifacts_url: TUNEMESH_ARTIFACTS_URL; the adapters are in its folder "adapters".
            max_bytes: a larger adapter is neither published nor fetched.
        Raises:
            NoSuchStore: the URL is of no store that this program knows.
        """
        check_store(artifacts_url)
        self._url = posixpath.join(str(artifacts_url), "adapters")
        self._max_bytes = max_bytes

    def publish(self, name: str | AdapterName, folder: str | Path, manifest: AdapterManifest) -> AdapterManifest:
        """Copy an adapter from a local folder into the store; it is complete and durable when this returns.

        Args:
            name: unused so far.
            folder: with the two content files; other files are left out.
            manifest: with `content_hash` empty; its name, base and task must be those of `name`.
        Returns:
            the manifest with its `content_hash`.
        Raises:
            AdapterExists: the name is taken. Nothing was changed.
            BadAdapterName: `name` is none.
            InvalidInput: the manifest is of another adapter, or the adapter is too large.
            CorruptArtifact: a content file is missing.
            Unavailable: the store cannot be written.
        """
        parsed = AdapterName.parse(str(name))
        if (manifest.name, manifest.base_model, manifest.task) != (str(parsed), parsed.base, parsed.task):
            raise InvalidInput(f"the manifest is of {manifest.name} ({manifest.base_model}, {manifest.task}), not of {parsed}")
        complete = dataclasses.replace(manifest, content_hash=hash_content(folder))
        self._check_size(str(parsed), sum((Path(folder) / file).stat().st_size for file in CONTENT_FILES))
        raw = to_json(complete)
        with opened_store(self._at(parsed), "written") as (filesystem, path):
            if is_there(filesystem, posixpath.join(path, _MANIFEST)):
                raise AdapterExists(f"adapter {parsed} exists already, and adapters do not change: take the next version")
            if is_local(filesystem):
                _publish_local(parsed, Path(path), Path(folder), raw)
            else:
                _publish_remote(parsed, filesystem, path, Path(folder), raw)
        return complete

    def fetch(self, name: str | AdapterName, into: str | Path) -> Path:
        """Copy an adapter to `into`/NAME, check every byte, and return that folder. One that is there already and whole is kept.

        Raises:
            AdapterNotFound: no such adapter.
            BadAdapterName: `name` is none.
            CorruptArtifact: too large, incomplete, or its bytes are not those of the manifest.
            Unavailable: the store cannot be read.
        """
        parsed = AdapterName.parse(str(name))
        manifest = self.manifest(parsed)
        target = Path(into) / str(parsed)
        if target.is_dir():
            if _is_whole(target, manifest.content_hash):
                return target
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY_PREFIX}{parsed}-", dir=target.parent))
        try:
            self._copy_content(parsed, temporary)
            found = hash_content(temporary)
            if found != manifest.content_hash:
                raise CorruptArtifact(f"adapter {parsed} is damaged: its content is {found}, its manifest says {manifest.content_hash}")
            (temporary / _MANIFEST).write_bytes(to_json(manifest))
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return target

    def names(self, task: str | None = None) -> list[AdapterName]:
        """Return the names of all adapters (of a task), sorted by base, task and version. An absent folder has none.

        Raises:
            Unavailable: the store cannot be read.
        """
        with opened_store(self._url, "listed") as (filesystem, root):
            filesystem.invalidate_cache()
            if not is_folder(filesystem, root):
                return []
            folders = [entry["name"] for entry in filesystem.ls(root, detail=True) if entry["type"] == "directory"]
            found = [_parse_or_none(posixpath.basename(folder.rstrip("/"))) for folder in folders]
            named = [name for name in found if name is not None and (task is None or name.task == task)]
            return sorted(name for name in named if is_there(filesystem, posixpath.join(root, str(name), _MANIFEST)))

    def next_name(self, base: str, task: str) -> AdapterName:
        """Return the lowest version above all that the store holds for the base and task.

        Raises:
            BadAdapterName: base or task cannot be part of a name.
            Unavailable: the store cannot be read.
        """
        first = AdapterName.first(base, task)
        return max((name.next() for name in self.names(task) if name.base == base), default=first)

    def manifest(self, name: str | AdapterName) -> AdapterManifest:
        """Return what an adapter is.

        Raises:
            AdapterNotFound: no such adapter.
            BadAdapterName: `name` is none.
            CorruptArtifact: the manifest cannot be understood, or is of another adapter.
            Unavailable: the store cannot be read.
        """
        parsed = AdapterName.parse(str(name))
        fields = self._read_json(parsed, _MANIFEST)
        if fields is None:
            raise AdapterNotFound(f"there is no adapter {parsed} in {self._url}")
        try:
            if fields.get("format_version") != FORMAT_VERSION:
                raise CorruptArtifact(
                    f"adapter {parsed}: {_MANIFEST} has format {fields.get('format_version')}, this program reads {FORMAT_VERSION}"
                )
            manifest = manifest_from(fields)
        except (TypeError, KeyError, AttributeError) as error:
            raise CorruptArtifact(f"adapter {parsed}: {_MANIFEST} cannot be understood: {error}") from error
        if manifest.name != str(parsed):
            raise CorruptArtifact(f"adapter {parsed}: {_MANIFEST} is of {manifest.name}")
        return manifest

    def write_verdict(self, verdict: AdapterVerdict) -> None:
        """Write down, once, what the adapter gate said. Only a verdict that was undecided gives way to a later one.

        Raises:
            AdapterExists: there is a verdict already.
            AdapterNotFound: no such adapter.
            Unavailable: the store cannot be written.
        """
        parsed = AdapterName.parse(verdict.name)
        self.manifest(parsed)
        before = self.verdict(parsed)
        with opened_store(self._at(parsed), "written") as (filesystem, path):
            file = posixpath.join(path, _VERDICT)
            try:
                if before is not None and before.is_undecided:
                    _replace(filesystem, file, to_json(verdict))
                else:
                    _create(filesystem, file, to_json(verdict))
            except FileExistsError as error:
                raise AdapterExists(f"adapter {parsed} has a verdict already") from error

    def verdict(self, name: str | AdapterName) -> AdapterVerdict | None:
        """Return what the adapter gate said about an adapter; None when it has not spoken.

        Raises:
            CorruptArtifact: it cannot be understood.
            Unavailable: the store cannot be read.
        """
        parsed = AdapterName.parse(str(name))
        fields = self._read_json(parsed, _VERDICT)
        if fields is None:
            return None
        try:
            return verdict_from(fields)
        except (TypeError, KeyError, AttributeError) as error:
            raise CorruptArtifact(f"adapter {parsed}: {_VERDICT} cannot be understood: {error}") from error

    def _at(self, name: AdapterName) -> str:
        return posixpath.join(self._url, str(name))

    def _check_size(self, name: str, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            raise InvalidInput(f"adapter {name} has {size_bytes} bytes; at most {self._max_bytes} are taken")

    def _copy_content(self, name: AdapterName, folder: Path) -> None:
        with opened_store(self._at(name), "read") as (filesystem, path):
            try:
                sizes = {file: int(filesystem.info(posixpath.join(path, file))["size"]) for file in CONTENT_FILES}
                if sum(sizes.values()) > self._max_bytes:
                    raise CorruptArtifact(f"adapter {name} has {sum(sizes.values())} bytes; at most {self._max_bytes} are taken")
                for file in CONTENT_FILES:
                    filesystem.get_file(posixpath.join(path, file), str(folder / file))
            except FileNotFoundError as error:
                raise CorruptArtifact(f"adapter {name} is incomplete: {error}") from error

    def _read_json(self, name: AdapterName, file: str) -> dict[str, Any] | None:
        with opened_store(posixpath.join(self._at(name), file), "read") as (filesystem, path):
            try:
                with filesystem.open(path, "rb") as stream:
                    raw = stream.read(_MAX_JSON_BYTES + 1)
            except (FileNotFoundError, NotADirectoryError):
                return None
        if len(raw) > _MAX_JSON_BYTES:
            raise CorruptArtifact(f"adapter {name}: {file} has more than {_MAX_JSON_BYTES} bytes")
        try:
            fields = json.loads(raw)
        except ValueError as error:
            raise CorruptArtifact(f"adapter {name}: {file} cannot be understood: {error}") from error
        if not isinstance(fields, dict):
            raise CorruptArtifact(f"adapter {name}: {file} is not an object")
        return fields


def _publish_local(name: AdapterName, target: Path, folder: Path, manifest: bytes) -> None:
    """Write beside, flush, rename: a directory is never renamed onto one that holds files, so the first writer wins."""
    root = target.parent
    root.mkdir(parents=True, exist_ok=True)
    _remove_stale(root)
    temporary = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY_PREFIX}{name}-", dir=root))
    try:
        for file in CONTENT_FILES:
            shutil.copyfile(folder / file, temporary / file)
        (temporary / _MANIFEST).write_bytes(manifest)
        for path in (*temporary.iterdir(), temporary):
            _flush_to_disk(path)
        # mkdtemp made it private; the llm service may run as another user.
        temporary.chmod(0o755)
        try:
            temporary.rename(target)
        except OSError as error:
            if target.exists():
                raise AdapterExists(f"adapter {name} exists already, and adapters do not change: take the next version") from error
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _flush_to_disk(root)


def _publish_remote(name: AdapterName, filesystem: Any, path: str, folder: Path, manifest: bytes) -> None:
    for file in CONTENT_FILES:
        filesystem.put_file(str(folder / file), posixpath.join(path, file))
    try:
        _create(filesystem, posixpath.join(path, _MANIFEST), manifest)
    except FileExistsError as error:
        raise AdapterExists(f"adapter {name} exists already, and adapters do not change: take the next version") from error


def _create(filesystem: Any, path: str, raw: bytes) -> None:
    """Write a file that must not exist. An object store is asked first, in a step of its own: it has one writer, the tuner."""
    if is_local(filesystem):
        with Path(path).open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        return
    if is_there(filesystem, path):
        raise FileExistsError(path)
    filesystem.pipe_file(path, raw)


def _replace(filesystem: Any, path: str, raw: bytes) -> None:
    """Write a file in place of one that is there: whole on a local disk, and by the store's own means elsewhere."""
    if not is_local(filesystem):
        filesystem.pipe_file(path, raw)
        return
    temporary = Path(f"{path}.part")
    temporary.write_bytes(raw)
    _flush_to_disk(temporary)
    temporary.replace(path)
    _flush_to_disk(temporary.parent)


def _parse_or_none(text: str) -> AdapterName | None:
    try:
        return AdapterName.parse(text)
    except BadAdapterName:
        return None


def _is_whole(folder: Path, content_hash: str) -> bool:
    try:
        return hash_content(folder) == content_hash
    except CorruptArtifact:
        return False


def _remove_stale(parent: Path) -> None:
    for leftover in parent.glob(f"{_TEMPORARY_PREFIX}*"):
        if time.time() - leftover.stat().st_mtime > _STALE_AFTER_S:
            shutil.rmtree(leftover, ignore_errors=True)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
