"""The folder of documents: which files are new, changed or gone since the last look. Knows no index."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from services.retriever.core.documents import FILES, ChunkLimits, CutDocument, FileText, hash_of
from services.retriever.extract import PARTLY_READ, SUFFIXES
from services.retriever.left_out import LeftOut
from services.retriever.outline import Unreadable

MAX_FILES_SHOWN = 100

# A look's documents are in memory together, and so are their passages and tokens.
_MAX_BATCH_BYTES = 16 * 1024 * 1024

# Documents that people put into such a folder, which are not read, and what to save them as. Style sheets, pictures and the like are
# passed over.
_UNREAD_SUFFIXES = {
    **dict.fromkeys((".doc", ".odt", ".rtf", ".dot", ".dotx"), ".docx"),
    **dict.fromkeys((".ppt", ".odp", ".pps", ".ppsx", ".potx"), ".pptx"),
    **dict.fromkeys((".xls", ".ods", ".xlsb", ".xltx"), ".xlsx"),
    **dict.fromkeys((".epub", ".pages", ".numbers", ".key"), ".pdf"),
}

# Beside a document that is open in Office: who has it open.
_LOCK = "~$"

# What does not pass by itself. Others are of disks, shares that lock files, and of too many open files.
_LASTING = frozenset({errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG})

_log = logging.getLogger(__name__)


class _NotNow(Exception):
    """A file cannot be read now. What is indexed of it stays, and the next look tries again."""


def _is_below(name: str, places: set[str]) -> bool:
    """Say whether a name, or a folder above it, is among the places."""
    return bool(places) and any(str(place) in places for place in (PurePosixPath(name), *PurePosixPath(name).parents))


def _shown(name: str) -> str:
    """Return a name as text, whatever its bytes are."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLimits:
    """What the folder may hold; the files over it are refused with a reason."""

    max_files: int
    max_bytes: int
    """Of one file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What tells a file from its former self without reading it."""

    mtime_ns: int
    ctime_ns: int
    """Changes with the permissions too: a file that could not be read may be readable now."""
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChanges:
    """What a look found."""

    documents: tuple[CutDocument, ...]
    """New or changed."""
    gone: tuple[str, ...]
    """Ids of documents that were indexed and whose files are not there any more, or are refused now."""
    more: bool
    """Whether the look ended before the whole folder was read: look again at once."""


class DocumentFolder:
    """Looks at one folder, again and again. One thread uses it; `refused` and `incomplete` may be read from any."""

    def __init__(
        self,
        folder: Path,
        limits: FileLimits,
        chunks: ChunkLimits,
        *,
        max_batch: int,
        read: Callable[[str, bytes], FileText],
        left_out: LeftOut,
    ) -> None:
        """Take what decides which files are read.

        Args:
            folder: need not be there yet.
            limits: of the files.
            chunks: a part of each document's hash.
            max_batch: a look reads at most so many files (or 16 MiB), so that what was read is searchable before all is.
            read: gives what there is to read of a file by its path and bytes, or raises Unreadable.
            left_out: what it lacks, of files that are indexed already too.
        """
        self._folder, self._limits, self._chunks, self._max_batch, self._file_text = folder, limits, chunks, max_batch, read
        self._seen: dict[str, _Seen] = {}
        self._device: int | None = None  # of the folder when it last had files
        self._said = ""
        self._left_out = left_out
        self.refused: dict[str, str] = {}
        """Path -> reason."""
        self.incomplete: dict[str, str] = {}
        """Path of a file that is indexed -> what its passages lack."""

    def forget(self) -> None:
        """Read every file again with the next looks: what the last one found was not indexed."""
        self._seen.clear()

    def look(self, indexed: Mapping[str, str]) -> FileChanges:
        """Return what changed. Reads files: call it off the event loop.

        A folder that is not there, or is empty where another disk was, deletes nothing: an unmounted disk must not empty the index. Nor
        does a folder inside that cannot be listed, or a disk that fails, delete what they hold.

        Args:
            indexed: document id -> content hash of what the index holds of files.
        Raises:
            Unavailable: files cannot be read now; call `forget` before the next look.
        """
        device = self._device_now()
        if device is None:
            self._say(f"the documents' folder {self._folder} is not there: what is indexed stays, and it is looked for")
            return FileChanges(documents=(), gone=(), more=False)
        found, refused, unreachable = self._walk()
        is_doubtful = self._is_doubtful(found.keys() | (refused.keys() - set(map(_shown, unreachable))), indexed, device)
        incomplete: dict[str, str] = {}
        documents: list[CutDocument] = []
        num_read, num_bytes, more = 0, 0, False
        for name, seen in found.items():
            if self._seen.get(name) == seen:
                if name in self.refused:
                    refused[name] = self.refused[name]
                if name in self.incomplete:
                    incomplete[name] = self.incomplete[name]
                continue
            if num_read >= self._max_batch or num_bytes >= _MAX_BATCH_BYTES:
                more = True
                continue
            num_read, num_bytes = num_read + 1, num_bytes + seen.size_bytes
            try:
                document, left_out = self._read(name, indexed.get(name))
                if left_out:
                    incomplete[name] = "; ".join(left_out)
            except Unreadable as error:
                refused[name] = str(error)
                document = None
            except _NotNow as error:
                refused[name] = str(error)
                unreachable.add(name)
                # A look that reads nothing new must not ask for another one at once.
                num_read, num_bytes = num_read - 1, num_bytes - seen.size_bytes
                continue
            self._seen[name] = seen
            if document is not None:
                documents.append(document)
        self._report(refused, incomplete)
        stays = {name for name in indexed if is_doubtful or _is_below(name, unreachable)}
        if not is_doubtful:
            self._left_out.save(found.keys() | stays)
        for name in self._seen.keys() - found.keys():
            del self._seen[name]
        gone = tuple(name for name in indexed if name not in stays and (name not in found or name in refused))
        return FileChanges(documents=tuple(documents), gone=gone, more=more)

    def _device_now(self) -> int | None:
        """Return the disk that the folder is on; None when it is not there, or its disk does not answer."""
        try:
            status = self._folder.stat()
        except OSError:
            return None
        return status.st_dev if stat.S_ISDIR(status.st_mode) else None

    def _is_doubtful(self, names: Collection[str], indexed: Mapping[str, str], device: int) -> bool:
        """Say whether the folder is empty where another disk was."""
        if not names and indexed and device != self._device:
            self._say(
                f"the documents' folder {self._folder} is empty, and {len(indexed)} documents are indexed: they stay until it has a file"
            )
            return True
        self._said = ""
        self._device = device if names else self._device
        return False

    def _say(self, what: str) -> None:
        """Log a complaint once, not with every look at the folder."""
        if what != self._said:
            _log.warning("%s", what)
        self._said = what

    def _walk(self) -> tuple[dict[str, _Seen], dict[str, str], set[str]]:
        """Return the readable files by their path inside the folder, sorted; what is refused unread; of that what nobody could look at."""
        found: dict[str, _Seen] = {}
        refused: dict[str, str] = {}
        unreachable: set[str] = set()

        def unlisted(error: OSError) -> None:
            folder = Path(error.filename).relative_to(self._folder).as_posix()
            refused[_shown(folder)] = f"it is a folder that cannot be listed: {error.strerror}"
            unreachable.add(folder)

        for path in self._files(unlisted):
            name = path.relative_to(self._folder).as_posix()
            shown = _shown(name)
            if shown != name:
                refused[shown] = "its name is not UTF-8"
                continue
            if (better := _UNREAD_SUFFIXES.get(path.suffix.lower())) is not None:
                refused[name] = f"{path.suffix.lower()} is not read: save it as {better}"
                continue
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            except OSError as error:
                refused[name] = f"it cannot be read: {error.strerror}"
                if error.errno not in _LASTING:
                    unreachable.add(name)
                continue
            if not stat.S_ISREG(status.st_mode):
                refused[name] = "it is a link or no file"
            elif status.st_size > self._limits.max_bytes:
                refused[name] = f"it has {status.st_size} bytes; at most {self._limits.max_bytes} are read"
            elif len(found) >= self._limits.max_files:
                refused[name] = f"the folder has more than {self._limits.max_files} files"
            else:
                found[name] = _Seen(mtime_ns=status.st_mtime_ns, ctime_ns=status.st_ctime_ns, size_bytes=status.st_size)
        return found, refused, unreachable

    def _files(self, on_error: Callable[[OSError], None]) -> Iterator[Path]:
        """Yield candidates in a stable order. Hidden files and folders are passed over; links are not followed."""
        for folder, folders, files in os.walk(self._folder, onerror=on_error):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                path = Path(folder, name)
                if not name.startswith((".", _LOCK)) and path.suffix.lower() in SUFFIXES | _UNREAD_SUFFIXES.keys():
                    yield path

    def _read(self, name: str, indexed_hash: str | None) -> tuple[CutDocument | None, tuple[str, ...]]:
        """Return the document, None when the index has it already, and what it lacks.

        Raises:
            Unreadable: the file is refused until it changes.
            _NotNow: its disk does not give it now.
        """
        try:
            with (self._folder / name).open("rb") as file:
                raw = file.read(self._limits.max_bytes + 1)
        except OSError as error:
            raise (Unreadable if error.errno in _LASTING else _NotNow)(f"it cannot be read: {error.strerror}") from error
        if len(raw) > self._limits.max_bytes:
            raise Unreadable(f"it grew over {self._limits.max_bytes} bytes")
        content_hash = hash_of(raw, self._chunks)
        is_whole = Path(name).suffix.lower() not in PARTLY_READ
        known = () if is_whole else self._left_out.of(name, content_hash)
        if content_hash == indexed_hash and known is not None:
            return None, known
        texts, left_out = self._file_text(name, raw)
        if not texts:
            raise Unreadable("no text was found in it")
        if not is_whole:
            self._left_out.note(name, content_hash, left_out)
        if content_hash == indexed_hash:
            return None, left_out  # who indexed it did not say what it lacks
        return CutDocument(document_id=name, source=FILES, texts=texts, content_hash=content_hash), left_out

    def _report(self, refused: dict[str, str], incomplete: dict[str, str]) -> None:
        for said, known, new in (("refused", self.refused, refused), ("indexed in part", self.incomplete, incomplete)):
            for name, reason in new.items():
                if known.get(name) != reason:
                    _log.warning("file %s is %s: %s", name, said, reason)
        self.refused, self.incomplete = refused, incomplete
