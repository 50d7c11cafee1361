"""Which files a path stands for: one file, a pattern, or all data files of a folder as Spark, Hive, polars or DuckDB write it."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from services.trainer.event_files.places import EventFileError
from services.trainer.event_files.sources import DataFile, Store

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""How Hive and Spark name the folder of rows whose partition column is null."""

# Folders that belong to a table format: which of the data files count stands in its log, and the others hold old or removed rows.
_TABLE_FORMATS = {
    "_delta_log": "a Delta Lake table",
    ".hoodie": "a Hudi table",
    "_spark_metadata": "the output of a Spark stream",
}


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One data file, and the columns that its folders carry (`user_id=003/`): always text, None for Hive's null."""

    path: DataFile
    partitions: Mapping[str, str | None] = field(default_factory=dict)


def find_files(path: str | Path) -> list[FoundFile]:
    """Return the data files of a path, a pattern (`day=*/*.parquet`) or an fsspec URL, in the order of their names.

    In a folder, names that begin with "_" or "." are bookkeeping (_SUCCESS, _metadata, .part-0.crc) and empty files hold no rows. Folders
    named KEY=VALUE are columns where they stand below the folder, or are matched by the pattern.

    Raises:
        EventFileError: there is nothing, the folder belongs to a table format, or its writer has not finished.
        Unavailable: a store does not answer.
    """
    if "://" in str(path):
        where = Store.of(str(path))
        if isinstance(where, Store):
            return _find_remote(where)
        path = where
    path = Path(path)
    if path.exists():
        return _below(path) if path.is_dir() else [FoundFile(path)]
    if not glob.has_magic(str(path)):
        raise EventFileError(f"{path}: there is no such file or folder")
    fixed = _fixed_part(path)
    every = sorted(fixed.glob(str(path.relative_to(fixed))))
    matches = [one for one in every if not any(map(_is_bookkeeping, one.relative_to(fixed).parts))]
    for above in sorted({up for match in matches for up in match.parents if up.is_relative_to(fixed)}):
        _check_local(above, *_listed(os.walk(above)))
    found = [
        FoundFile(one.path, _partitions((match if match.is_dir() else match.parent).relative_to(fixed).parts) | dict(one.partitions))
        for match in matches
        for one in (_below(match) if match.is_dir() else [FoundFile(match)])
    ]
    # A pattern may match a folder and the files in it, or a file and a link to it.
    links_first = sorted(found, key=lambda one: not Path(str(one.path)).is_symlink())
    once = {os.path.realpath(str(one.path)): one for one in links_first}
    return _nonempty(path, sorted(once.values(), key=lambda one: Path(str(one.path))), "no file matches the pattern")


def _fixed_part(path: Path) -> Path:
    """Return the folders of a pattern before its first sign."""
    parts = path.parts
    first = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first])


def _listed(walk: Iterator[tuple[str, list[str], list[str]]]) -> tuple[list[str], list[str]]:
    """Return the names of folders and files of the first folder of a walk; none where it cannot be listed."""
    for _, names, files in walk:
        return names, files
    return [], []


def _check_local(folder: Path, names: Sequence[str], files: Sequence[str]) -> None:
    tables = [file.name for file in (folder / "metadata").glob("*.metadata.json")] if "metadata" in names else []
    _check_folder(str(folder), names, files, tables)


def _below(path: Path) -> list[FoundFile]:
    """Return the files below a folder; links are followed once all that is there itself was seen."""
    found: list[FoundFile] = []
    seen: set[str] = set()
    waiting = [path]
    while waiting:
        links: list[Path] = []
        for start in waiting:
            found += _unseen(path, start, seen, links)
        waiting = links
    return sorted(_nonempty(path, found, "the folder holds no data files"), key=lambda file: Path(str(file.path)))


def _unseen(root: Path, start: Path, seen: set[str], links: list[Path]) -> Iterator[FoundFile]:
    """Yield the files at or below a place that were not seen yet under another name; the links that are met are added to `links`."""
    if not start.exists():
        raise EventFileError(f"{start}: is a link to nothing; remove it")
    if not start.is_dir():
        yield from _unseen_file(root, start, seen)
    for folder, names, files in os.walk(start):
        here = Path(folder)
        if os.path.realpath(here) in seen:
            names.clear()
            continue
        seen.add(os.path.realpath(here))
        _check_local(here, names, files)
        data = [name for name in sorted([*names, *files]) if not _is_bookkeeping(name)]
        linked = {name for name in data if (here / name).is_symlink()}
        links += [here / name for name in sorted(linked)]
        names[:] = sorted(set(names) & set(data) - linked)
        for name in sorted(set(files) & set(data) - linked):
            yield from _unseen_file(root, here / name, seen)


def _unseen_file(root: Path, file: Path, seen: set[str]) -> Iterator[FoundFile]:
    real = os.path.realpath(file)
    if real not in seen and file.stat().st_size:
        yield FoundFile(file, _partitions(file.parent.relative_to(root).parts))
    seen.add(real)


def _find_remote(store: Store) -> list[FoundFile]:
    found = store.entry(store.path)
    if found is None and glob.has_magic(store.path):
        fixed = str(_fixed_part(Path(store.path)))
        matches = [path for path in store.matches() if not any(map(_is_bookkeeping, PurePosixPath(path).relative_to(fixed).parts))]
        for above in sorted({folder for path in matches for folder in _folders_above(path, store.path)}):
            _check_remote(store, above, *_listed(store.walk(above)))
        # A pattern may match a folder and the files in it.
        once = {str(one.path): one for path in matches for one in _remote_below(store, path, fixed)}
        return _nonempty(store.file(store.path), once.values(), "no file matches the pattern")
    if found is None:
        raise EventFileError(f"{store.file(store.path)}: there is no such file or folder")
    if found["type"] != "directory":
        return [FoundFile(store.file(store.path))]
    files = list(_remote_below(store, store.path, store.path))
    return _nonempty(store.file(store.path), files, "the folder holds no data files")


def _remote_below(store: Store, path: str, root: str) -> Iterator[FoundFile]:
    """Yield the files at or below a path, in the order of their names; partitions are the folders below `root`."""
    entry = store.entry(path)
    if entry is None or entry["type"] != "directory":
        yield FoundFile(store.file(path), _partitions(PurePosixPath(path).parent.relative_to(root).parts))
        return
    paths = []
    for folder, names, files in store.walk(path):
        _check_remote(store, folder, names, files)
        paths += [f"{folder.rstrip('/')}/{name}" for name in files if not _is_bookkeeping(name)]
    for one in sorted(paths):
        below = PurePosixPath(one).parent.relative_to(root).parts
        inner = PurePosixPath(one).parent.relative_to(path).parts
        if not any(_is_bookkeeping(part) for part in inner) and (store.entry(one) or {"size": 0})["size"]:
            yield FoundFile(store.file(one), _partitions(below))


def _check_remote(store: Store, folder: str, names: Sequence[str], files: Sequence[str]) -> None:
    below = _listed(store.walk(f"{folder}/metadata"))[1] if "metadata" in names else []
    _check_folder(str(store.file(folder)), names, files, [name for name in below if name.endswith(".metadata.json")])


def _folders_above(path: str, pattern: str) -> Iterator[str]:
    """Yield the folders above a match, down from where the pattern has its first sign. Addresses of the web have two slashes in a row."""
    first = next(at for at, sign in enumerate(pattern) if sign in "*?[")
    fixed = pattern.rfind("/", 0, first)
    yield from (path[:at] for at, sign in enumerate(path) if sign == "/" and at >= max(fixed, 1))


def _nonempty(path: object, found: Iterable[FoundFile], otherwise: str) -> list[FoundFile]:
    files = list(found)
    if not files:
        raise EventFileError(f"{path}: {otherwise}")
    return files


def _is_bookkeeping(name: str) -> bool:
    return name.startswith((".", "_")) and "=" not in name


def _check_folder(folder: str, names: Sequence[str], files: Sequence[str], iceberg: Sequence[str]) -> None:
    kind = next((kind for name, kind in _TABLE_FORMATS.items() if name in names), None)
    if kind is None and iceberg:
        kind = "an Iceberg table"
    if kind is not None:
        raise EventFileError(
            f"{folder}: is {kind}, whose folder also holds files with removed or unfinished rows; "
            "export the rows to Parquet, and name that folder"
        )
    if "_temporary" in names and "_SUCCESS" not in files:
        raise EventFileError(f"{folder}: holds _temporary and no _SUCCESS: its writer has not finished, or has failed; write it again")


def _partitions(below: Sequence[str]) -> dict[str, str | None]:
    pairs = (part.partition("=") for part in below if "=" in part)
    return {unquote(name): None if value == NULL_PARTITION else unquote(value) for name, _, value in pairs}
