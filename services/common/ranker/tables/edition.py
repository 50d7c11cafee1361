"""The folder of a replica's mapped model: which edition is current, and who may write.

    <directory>/writer.lock                held by the one writer
    <directory>/CURRENT                    the name of the current edition, swapped atomically
    <directory>/edition-<number>/control       what is applied (`control_block`)
                                 dense         the dense weights (`dense`)
                                 table-<name>  one table (`mapped`)

An edition is the whole model in one folder: the writer makes it from a base, applies deltas to it in place, and makes the next one when the
model no longer fits, or comes from another base.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from pathlib import Path

from services.common.platform.errors import ConfigurationError, CorruptArtifact
from services.common.ranker.tables.control_block import retire

TABLE_FILE_PREFIX = "table-"
_CURRENT_FILE = "CURRENT"
_LOCK_FILE = "writer.lock"
# A folder made before 2026-12 is called gen-<number>.
_EDITION_NAME = re.compile(r"(?:edition|gen)-(\d{8,})")


def current_edition(directory: Path) -> Path | None:
    """Return the folder of the current edition, None when there is none yet."""
    try:
        name = (directory / _CURRENT_FILE).read_text(errors="replace").strip()
    except FileNotFoundError:
        return None
    if not _EDITION_NAME.fullmatch(name):
        raise CorruptArtifact(f"{directory / _CURRENT_FILE} names {name!r}, which is no edition")
    return directory / name


def make_current(directory: Path, folder: Path) -> None:
    """Point CURRENT at `folder`, atomically."""
    temporary = directory / f"{_CURRENT_FILE}.new"
    temporary.write_text(folder.name)
    temporary.replace(directory / _CURRENT_FILE)


def abandon(directory: Path) -> None:
    """Turn readers away: the current edition is damaged. Until there is another one, there is none."""
    (directory / _CURRENT_FILE).unlink(missing_ok=True)
    for path in directory.iterdir():
        if _EDITION_NAME.fullmatch(path.name):
            retire(path)


def new_edition(directory: Path) -> tuple[int, Path]:
    """Make the folder of the next edition; return its number and path."""
    numbers = [int(match[1]) for path in directory.iterdir() if (match := _EDITION_NAME.fullmatch(path.name))]
    number = max(numbers, default=0) + 1
    folder = directory / f"edition-{number:08d}"
    folder.mkdir()
    return number, folder


def remove_other_editions(directory: Path) -> None:
    """Retire and delete all editions but the current one. Readers that have them mapped keep what they mapped and move on."""
    current = current_edition(directory)
    for path in directory.iterdir():
        if _EDITION_NAME.fullmatch(path.name) and path != current:
            retire(path)
            shutil.rmtree(path)


class WriterLock:
    """Makes sure that a folder has one writer; the system lets go of it when the process ends, however it ends."""

    def __init__(self, directory: Path) -> None:
        """Take the lock.

        Raises:
            ConfigurationError: another process holds it, or the folder cannot be written.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(directory / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            message = f"tables folder {directory} cannot be written ({error.strerror}): set TUNEMESH_TABLES_DIR to a folder that can"
            raise ConfigurationError(message) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            message = f"another process writes the tables in {directory}: stop it, or set TUNEMESH_TABLES_DIR to another folder"
            raise ConfigurationError(message) from error

    def release(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)
