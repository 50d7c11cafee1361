"""Opens the store that an fsspec URL means: a local folder, or an object store, an FTP server, whatever fsspec knows.

Tells apart a store that does not exist (no such protocol, or its package is not installed: a setting is wrong, trying again does not help)
from one that is there and does not answer now. Clients such as FTP's and SFTP's connect when they are made and keep that connection, so a
store is opened anew for each piece of work; fsspec gives the same client again where one can be kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from services.common.platform.errors import ConfigurationError, CorruptArtifact, ServiceError, Unavailable


class NoSuchStore(ConfigurationError):
    """A URL is of no store that this program knows: its protocol, its package or its address. Retrying does not help."""


def open_store(url: str | Path) -> tuple[Any, str]:
    """Return fsspec's file system and the path in it.

    Raises:
        NoSuchStore: fsspec knows no such protocol, its package is not installed, or the address cannot be one.
        Unavailable: it cannot be reached, or does not let this program in. Retrying later helps.
    """
    try:
        filesystem, path = fsspec.url_to_fs(str(url))
    # First, for some clients' errors are both: requests' JSONDecodeError is an OSError and a ValueError.
    except OSError as error:
        raise Unavailable(f"the store of {url} does not answer: {error}") from error
    except (ValueError, ImportError) as error:
        raise NoSuchStore(f"{url} is in no store that this program knows: {error}") from error
    except Exception as error:  # what the store's own client raises: ftplib.error_temp, EOFError, …
        raise Unavailable(f"the store of {url} does not answer: {error!r}") from error
    return filesystem, str(path)


def check_store(url: str | Path) -> None:
    """Find out, without reaching for it, whether there can be such a store.

    Raises:
        NoSuchStore: fsspec knows no such protocol, or its package is not installed.
    """
    links = str(url).split("::")
    for link in links:
        protocol, is_address, _ = link.partition("://")
        try:
            fsspec.get_filesystem_class(protocol if is_address or len(links) > 1 else "file")
        except (ValueError, ImportError) as error:
            raise NoSuchStore(f"{url} is in no store that this program knows: {error}") from error


@contextmanager
def opened_store(url: str | Path, done: str) -> Iterator[tuple[Any, str]]:
    """Give the file system and the path of a URL that a setting names, e.g. `with opened_store(url, "listed") as (filesystem, path)`.

    Inside, an error of the store, whatever its client calls it, becomes Unavailable; the project's own errors and ValueError pass.

    Raises:
        NoSuchStore: there is no such store; says which setting to correct.
        Unavailable: it does not answer, or what is there cannot be `done`.
    """
    try:
        at = open_store(url)
    except NoSuchStore as error:
        raise NoSuchStore(f"{error}; set TUNEMESH_ARTIFACTS_URL to a folder, or install the store's package") from error
    try:
        yield at
    except (ServiceError, CorruptArtifact, ConfigurationError, ValueError):
        raise
    except Exception as error:
        raise Unavailable(f"{url} cannot be {done}: {error or repr(error)}") from error


def is_local(filesystem: Any) -> bool:
    """Return whether it is this machine's disk."""
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def is_there(filesystem: Any, path: str) -> bool:
    """Return whether a file or folder is there. fsspec's own `exists` says no as well when the store does not answer."""
    return _kind(filesystem, path) is not None


def is_folder(filesystem: Any, path: str) -> bool:
    """Return whether a folder is there. fsspec's own `isdir` says no as well when the store does not answer."""
    return _kind(filesystem, path) == "directory"


def _kind(filesystem: Any, path: str) -> str | None:
    try:
        return str(filesystem.info(path)["type"])
    except (FileNotFoundError, NotADirectoryError):
        return None
