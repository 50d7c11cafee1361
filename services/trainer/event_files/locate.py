"""Which files a path stands for: one file, or all data files of a folder as Spark, Hive, polars or DuckDB write it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from services.trainer.event_files.places import EventFileError

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

    path: Path
    partitions: Mapping[str, str | None] = field(default_factory=dict)


def find_files(path: Path) -> list[FoundFile]:
    """Return the data files of a path, in the order of their names.

    In a folder, names that begin with "_" or "." are bookkeeping (_SUCCESS, _metadata, .part-0.crc) and empty files hold no rows.

    Raises:
        EventFileError: there is nothing, the folder belongs to a table format, or its writer has not finished.
    """
    if not path.exists():
        raise EventFileError(f"{path}: there is no such file or folder")
    if not path.is_dir():
        return [FoundFile(path)]
    found = []
    for folder, names, files in os.walk(path):
        here = Path(folder)
        _check_folder(here, names, files)
        names[:] = sorted(name for name in names if not _is_bookkeeping(name))
        partitions = _partitions(here.relative_to(path))
        for name in sorted(files):
            file = here / name
            if not _is_bookkeeping(name) and file.stat().st_size:
                found.append(FoundFile(file, partitions))
    if not found:
        raise EventFileError(f"{path}: the folder holds no data files")
    return sorted(found, key=lambda file: file.path)


def _is_bookkeeping(name: str) -> bool:
    return name.startswith((".", "_")) and "=" not in name


def _check_folder(folder: Path, names: list[str], files: list[str]) -> None:
    kind = next((kind for name, kind in _TABLE_FORMATS.items() if name in names), None)
    if kind is None and "metadata" in names and any((folder / "metadata").glob("*.metadata.json")):
        kind = "an Iceberg table"
    if kind is not None:
        raise EventFileError(
            f"{folder}: is {kind}, whose folder also holds files with removed or unfinished rows; "
            "export the rows to Parquet, and name that folder"
        )
    if "_temporary" in names and "_SUCCESS" not in files:
        raise EventFileError(f"{folder}: holds _temporary and no _SUCCESS: its writer has not finished, or has failed; write it again")


def _partitions(below: Path) -> dict[str, str | None]:
    pairs = (part.partition("=") for part in below.parts if "=" in part)
    return {unquote(name): None if value == NULL_PARTITION else unquote(value) for name, _, value in pairs}
