"""Where files of events are: on this machine's disk, or in a store that fsspec reaches by a URL (s3://, gs://, memory://, …)."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from services.common.platform.errors import Unavailable
from services.common.platform.secrets import without_credentials
from services.common.platform.stores import NoSuchStore, is_local, open_store
from services.trainer.event_files.places import EventFileError


class DataFile(Protocol):
    """What readers need of a file; `pathlib.Path` has it. Its text is what errors name."""

    @property
    def name(self) -> str:
        """The last part of its path."""

    @property
    def suffix(self) -> str:
        """The end of its name, from the last dot on."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a store."""

    filesystem: Any
    path: str
    shown: str
    """Its URL without credentials."""

    def __str__(self) -> str:
        return self.shown

    @property
    def name(self) -> str:
        """The last part of its path."""
        return posixpath.basename(self.path)

    @property
    def suffix(self) -> str:
        """The end of its name, from the last dot on."""
        return posixpath.splitext(self.path)[1]


def opened(file: DataFile) -> IO[bytes]:
    """Open a file for reading; raises OSError, or what the store's client raises."""
    if isinstance(file, RemoteFile):
        stream: IO[bytes] = file.filesystem.open(file.path, "rb")
        return stream
    assert isinstance(file, Path)
    return file.open("rb")


@dataclass(frozen=True, slots=True)
class Store:
    """A place in a store that is not this machine's disk."""

    filesystem: Any
    path: str
    prefix: str
    """What stands before a path in a URL: "memory://"."""

    @classmethod
    def of(cls, url: str) -> Store | Path:
        """Return where a URL leads: file:// is a path of this machine.

        Raises:
            EventFileError: the package that reaches such a store is not installed, or there is no such kind of store.
            Unavailable: the store does not answer. Retrying later helps.
        """
        try:
            filesystem, path = open_store(url)
        except NoSuchStore as error:
            said = without_credentials(str(error))
            raise EventFileError(
                f"{said}; install that package into the ml environment, or copy the files to this machine and name the folder"
            ) from error
        return Path(path) if is_local(filesystem) else cls(filesystem, path.rstrip("/"), f"{url.partition('://')[0]}://")

    def file(self, path: str) -> RemoteFile:
        """Return a file of it."""
        return RemoteFile(self.filesystem, path, without_credentials(f"{self.prefix}{path.lstrip('/')}"))

    def entry(self, path: str) -> Mapping[str, Any] | None:
        """Return what the store says of a path, e.g. its type and size; None when there is nothing. Raises Unavailable."""
        try:
            found: Mapping[str, Any] = self.filesystem.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:
            raise Unavailable(f"{self.file(path)} cannot be read: {without_credentials(repr(error))}") from error
        return found

    def matches(self) -> list[str]:
        """Return the paths that match this place's path as a pattern. Raises Unavailable."""
        try:
            return sorted(self.filesystem.glob(self.path))
        except Exception as error:
            raise Unavailable(f"{self.file(self.path)} cannot be listed: {without_credentials(repr(error))}") from error

    def walk(self, path: str) -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield (folder, names of folders, names of files), as os.walk does. Raises Unavailable."""
        try:
            yield from self.filesystem.walk(path)
        except Exception as error:
            raise Unavailable(f"{self.file(path)} cannot be listed: {without_credentials(repr(error))}") from error
