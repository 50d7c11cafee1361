"""Bases and checkpoints as folders of plain arrays, through fsspec: a local folder or an object store, by URL.

    <url>/manifest.json          what it is, and the size and CRC32C of every other file; written last
    <url>/arrays/<name>.npy      one per array, NumPy's format, no pickle

A folder is READY when its manifest is there and every file is what the manifest says. On a local disk it appears whole or not at all
(written beside, flushed to the disk, renamed); elsewhere the manifest comes last. An artifact never changes once it is READY.

Knows nothing of tables, networks or Kafka; the names of arrays mean something to those who write and read them.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import os
import posixpath
import re
import shutil
import tempfile
import time
import tokenize
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import crc32c
import numpy as np
from numpy.typing import NDArray

from services.common.platform.errors import Conflict, CorruptArtifact, NotFound, Unavailable
from services.common.platform.stores import NoSuchStore, is_folder, is_local, is_there, open_store, opened_store

Array = NDArray[Any]
Arrays = dict[str, Array]

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
_ARRAY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(/[A-Za-z0-9_][A-Za-z0-9_.\-]*)*")
_TEMPORARY_PREFIX = ".incomplete-"
# No write takes this long: what is older was left by a writer that died.
_STALE_AFTER_S = 3600.0
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# What JSON must hold for a field that is neither a number nor a text.
_JSON_TYPES: Mapping[str, type] = {"source_offsets": tuple, "metadata": dict, "files": dict}
Parsed = TypeVar("Parsed", "Manifest", "FileStamp")
# What a path that no file can have is answered with; which of them differs between stores. Trying again does not help.
_NO_SUCH_PATH = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an artifact is.

    `files` is filled by `write_artifact`; leave it empty.
    """

    kind: str
    """"base" or "checkpoint"."""
    model: str
    schema_hash: str
    """Of the feature spec; rows of another layout are refused."""
    lineage_id: str
    """Of the broker whose offsets are meant."""
    epoch: int
    seq: int
    """The last delta of the epoch that is contained; -1 when none is."""
    source_offsets: tuple[int, ...] = ()
    """Next sample offset per partition of samples.v1: everything below is contained."""
    watermark_ms: int = 0
    created_at_ms: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Anything that JSON can hold."""
    files: Mapping[str, FileStamp] = field(default_factory=dict)
    """By path inside the folder."""
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStamp:
    """What a file must be."""

    size_bytes: int
    crc32c: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A READY artifact: where it is, what it says, and the CRC that a BasePointer carries."""

    url: str
    manifest: Manifest
    manifest_crc32c: int


def check_free(url: str | Path) -> None:
    """Find out whether an artifact could be written there, before the work that makes it.

    Raises:
        Conflict: there is an artifact at `url` already.
        Unavailable: the store cannot be read.
        ConfigurationError: the URL is of no store that this program knows.
    """
    with opened_store(url, "read") as (filesystem, path):
        if is_there(filesystem, posixpath.join(path, _MANIFEST)):
            raise Conflict(f"artifact {url} exists already and artifacts do not change; choose another name")


def write_artifact(url: str | Path, manifest: Manifest, arrays: Mapping[str, Array]) -> Artifact:
    """Write a new artifact; it is durable and READY when this returns.

    Args:
        url: folder that must not hold an artifact yet; what an interrupted write left there is replaced.
        manifest: with `files` empty.
        arrays: by name, e.g. "table/user/rows": parts of letters, digits, "_", "-" and "." joined by "/". No object arrays.
    Raises:
        Conflict: there is an artifact at `url` already.
        ValueError: a name is not allowed, or an array holds objects.
        Unavailable: the store cannot be written, e.g. it is full.
        ConfigurationError: the URL is of no store that this program knows.
    """
    check_free(url)
    with opened_store(url, "written") as (filesystem, path):
        if is_local(filesystem):
            return _write_local(str(url), Path(path), manifest, arrays)
        if is_there(filesystem, path):
            filesystem.rm(path, recursive=True)
        return _write_files(str(url), filesystem, path, manifest, arrays)


def read_manifest(url: str | Path, *, expect_manifest_crc32c: int | None = None) -> Artifact:
    """Return the artifact's manifest; reads no array.

    Raises:
        NotFound: no READY artifact is there, or the URL is of no store that this program knows.
        CorruptArtifact: the manifest is damaged, of an unknown format, or not the one that was meant.
        Unavailable: the store cannot be read.
    """
    filesystem, path = _open_for_reading(url)
    raw = _read_file(filesystem, posixpath.join(path, _MANIFEST))
    if raw is None:
        raise NotFound(f"no READY artifact at {url}: it has no {_MANIFEST}")
    checksum = crc32c.crc32c(raw)
    if expect_manifest_crc32c is not None and checksum != expect_manifest_crc32c:
        raise CorruptArtifact(f"artifact {url}: CRC32C of {_MANIFEST} is {checksum:08x}, expected {expect_manifest_crc32c:08x}")
    return Artifact(url=str(url), manifest=_parse_manifest(str(url), raw), manifest_crc32c=checksum)


def read_artifact(
    url: str | Path,
    *,
    expect_schema_hash: str | None,
    expect_lineage: str | None = None,
    expect_manifest_crc32c: int | None = None,
    only: Callable[[str], bool] | None = None,
) -> tuple[Manifest, Arrays]:
    """Return the manifest and the arrays, every byte checked.

    Args:
        url: the artifact's folder.
        expect_schema_hash: of this program's feature spec; None takes any.
        expect_lineage: of the broker in use; None takes any.
        expect_manifest_crc32c: from a BasePointer; None takes any.
        only: tells by name which arrays to read; None reads all.
    Raises:
        NotFound: no READY artifact is there, or the URL is of no store that this program knows.
        CorruptArtifact: foreign schema or lineage, unknown format, missing, truncated or damaged file. The message says which.
        Unavailable: the store cannot be read.
    """
    filesystem, path = _open_for_reading(url)
    manifest = read_manifest(url, expect_manifest_crc32c=expect_manifest_crc32c).manifest
    if expect_schema_hash is not None and manifest.schema_hash != expect_schema_hash:
        raise CorruptArtifact(f"artifact {url}: schema {manifest.schema_hash!r} is foreign, this program has {expect_schema_hash!r}")
    if expect_lineage is not None and manifest.lineage_id != expect_lineage:
        raise CorruptArtifact(f"artifact {url}: lineage {manifest.lineage_id!r} is not that of this broker, {expect_lineage!r}")
    arrays: Arrays = {}
    for file, stamp in manifest.files.items():
        name = _array_name(str(url), file)
        if only is None or only(name):
            raw = _read_file(filesystem, posixpath.join(path, file))
            arrays[name] = _parse_array(f"artifact {url}: {file}", raw, stamp)
    return manifest, arrays


def list_artifacts(url: str | Path) -> list[str]:
    """Return the URLs of the READY artifacts directly inside the folder `url`, by name. An absent folder has none.

    Raises:
        Unavailable: the store cannot be read.
        ConfigurationError: the URL is of no store that this program knows.
    """
    with opened_store(url, "listed") as (filesystem, path):
        if not is_folder(filesystem, path):
            return []
        folders = [entry["name"] for entry in filesystem.ls(path, detail=True) if entry["type"] == "directory"]
        names = [posixpath.basename(folder) for folder in folders if is_there(filesystem, posixpath.join(folder, _MANIFEST))]
    return [posixpath.join(str(url), name) for name in sorted(names) if not name.startswith(_TEMPORARY_PREFIX)]


def delete_artifact(url: str | Path) -> None:
    """Delete an artifact, its manifest first, so that nobody takes a half-deleted folder for READY. An absent one is no error.

    Raises:
        Unavailable: the store cannot be written.
        ConfigurationError: the URL is of no store that this program knows.
    """
    with opened_store(url, "deleted") as (filesystem, path):
        manifest = posixpath.join(path, _MANIFEST)
        if is_there(filesystem, manifest):
            filesystem.rm(manifest)
        if is_there(filesystem, path):
            filesystem.rm(path, recursive=True)


def _open_for_reading(url: str | Path) -> tuple[Any, str]:
    """Return the store and the path in it. The URL may come out of a topic: where there is no such store, there is no artifact."""
    try:
        return open_store(url)
    except NoSuchStore as error:
        raise NotFound(str(error)) from error


def _write_local(url: str, folder: Path, manifest: Manifest, arrays: Mapping[str, Array]) -> Artifact:
    """Write beside `folder`, flush, rename: after a crash the artifact is there or it is not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY_PREFIX}{folder.name}-", dir=folder.parent))
    try:
        filesystem, path = open_store(temporary)
        artifact = _write_files(url, filesystem, path, manifest, arrays)
        for directory, _, files in os.walk(temporary, topdown=False):
            for name in [*files, "."]:
                _flush_to_disk(Path(directory, name))
        # mkdtemp made it private; other processes' users read artifacts.
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _flush_to_disk(folder.parent)
    return artifact


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


def _write_files(url: str, filesystem: Any, path: str, manifest: Manifest, arrays: Mapping[str, Array]) -> Artifact:
    """Write the arrays, then the manifest that names them."""
    files = {}
    for name, array in sorted(arrays.items()):
        if not _ARRAY_NAME.fullmatch(name):
            raise ValueError(f"array name {name!r} is not made of letters, digits, '_', '-', '.' and '/'")
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.asarray(array, order="C"), allow_pickle=False)
        files[f"arrays/{name}.npy"] = _write_file(filesystem, posixpath.join(path, "arrays", f"{name}.npy"), buffer.getvalue())
    complete = dataclasses.replace(manifest, files=files)
    raw = json.dumps(dataclasses.asdict(complete), indent=1, sort_keys=True, allow_nan=False).encode()
    stamp = _write_file(filesystem, posixpath.join(path, _MANIFEST), raw)
    return Artifact(url=url, manifest=complete, manifest_crc32c=stamp.crc32c)


def _write_file(filesystem: Any, path: str, content: bytes) -> FileStamp:
    filesystem.makedirs(posixpath.dirname(path), exist_ok=True)
    with filesystem.open(path, "wb") as file:
        file.write(content)
    return FileStamp(size_bytes=len(content), crc32c=crc32c.crc32c(content))


def _read_file(filesystem: Any, path: str) -> bytes | None:
    """Return the file's bytes, None when it is not there, or no file can be there."""
    try:
        with filesystem.open(path, "rb") as file:
            return bytes(file.read())
    except OSError as error:
        if isinstance(error, _NOT_THERE) or error.errno in _NO_SUCH_PATH:
            return None
        raise Unavailable(f"{path} cannot be read: {error}") from error
    except ValueError:
        # A path with a zero byte in it.
        return None
    except Exception as error:
        raise Unavailable(f"{path} cannot be read: {error!r}") from error


def _parse_manifest(url: str, raw: bytes) -> Manifest:
    try:
        fields = json.loads(raw)
        if not isinstance(fields, dict):
            raise CorruptArtifact(f"artifact {url}: {_MANIFEST} is not an object")
        if fields.get("format_version") != FORMAT_VERSION:
            raise CorruptArtifact(f"artifact {url}: format version {fields.get('format_version')}, this program reads {FORMAT_VERSION}")
        fields["files"] = {file: _typed(FileStamp(**stamp)) for file, stamp in fields["files"].items()}
        fields["source_offsets"] = tuple(fields["source_offsets"])
        return _typed(Manifest(**fields))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptArtifact(f"artifact {url}: {_MANIFEST} cannot be understood: {error}") from error


def _typed(parsed: Parsed) -> Parsed:
    """Return `parsed`. Raises TypeError if JSON had another type where a number, a text or an object belongs."""
    for each in dataclasses.fields(parsed):
        value: object = getattr(parsed, each.name)
        wanted = _JSON_TYPES.get(each.name, int if each.type == "int" else str)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise TypeError(f"{each.name} is {value!r:.60}")
        numbers = [value] if isinstance(value, int) else value if isinstance(value, tuple) else []
        if any(type(number) is not int or not -(1 << 63) <= number < 1 << 63 for number in numbers):
            raise ValueError(f"{each.name} is {value!r:.60}, which is no number of 64 bits")
    return parsed


def _array_name(url: str, file: str) -> str:
    """Return the name of the array in `file`; refuses any path that would lead out of the folder."""
    name = file.removeprefix("arrays/").removesuffix(".npy")
    if file != f"arrays/{name}.npy" or not _ARRAY_NAME.fullmatch(name):
        raise CorruptArtifact(f"artifact {url}: {_MANIFEST} names a file {file!r} that cannot be part of it")
    return name


def _parse_array(what: str, raw: bytes | None, stamp: FileStamp) -> Array:
    if raw is None:
        raise CorruptArtifact(f"{what} is missing")
    if len(raw) != stamp.size_bytes:
        raise CorruptArtifact(f"{what} has {len(raw)} bytes instead of {stamp.size_bytes}: truncated")
    if crc32c.crc32c(raw) != stamp.crc32c:
        raise CorruptArtifact(f"{what} is damaged: its CRC32C is not that of the manifest")
    try:
        return _decode_array(raw)
    # NumPy lets out what Python's own tokenizer says of a damaged header.
    except (ValueError, TypeError, OverflowError, MemoryError, RecursionError, SyntaxError, tokenize.TokenError) as error:
        raise CorruptArtifact(f"{what} is no array: {error}") from error


def _decode_array(raw: bytes) -> Array:
    """Return a copy of the array in NumPy's format. Its size is checked before memory is taken: a damaged shape may say petabytes."""
    file = io.BytesIO(raw)
    version = np.lib.format.read_magic(file)
    if version not in _READ_HEADER:
        raise ValueError(f"version {version} of NumPy's format is not read here")
    shape, is_fortran, dtype = _READ_HEADER[version](file)
    start = file.tell()
    if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(raw) - start:
        raise ValueError(f"{len(raw) - start} bytes do not hold shape {shape} of {dtype}")
    flat = np.frombuffer(raw, dtype, offset=start) if len(raw) > start else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if is_fortran else "C").copy()
