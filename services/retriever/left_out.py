"""What of which file is in no passage, in a file beside the index: a file whose content is known is not read again, and whoever looks at
the status after a restart must see it all the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path

FILE_NAME = "left_out.json"

_log = logging.getLogger(__name__)


class LeftOut:
    """By file and content. One thread uses it."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a file that is damaged is begun anew, which reads the office files once more."""
        self._path = path
        self._known: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._is_changed = False
        try:
            for name, (content_hash, parts) in json.loads(path.read_bytes().decode("utf-8", "surrogatepass")).items():
                self._known[str(name)] = (str(content_hash), tuple(str(part) for part in parts))
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, AttributeError) as error:
            self._known.clear()
            _log.warning("%s is begun anew: %s", path, error)

    def of(self, name: str, content_hash: str) -> tuple[str, ...] | None:
        """Return what a file's passages lack; None when it is not known of this content."""
        known_hash, parts = self._known.get(name, ("", ()))
        return parts if known_hash == content_hash else None

    def note(self, name: str, content_hash: str, parts: Sequence[str]) -> None:
        """Take what a file's passages lack, if only nothing."""
        self._known[name] = (content_hash, tuple(parts))
        self._is_changed = True

    def save(self, names: Collection[str]) -> None:
        """Forget all other files, and write what changed. A disk that does not take it is said: the files are read once more then."""
        for name in self._known.keys() - names:
            del self._known[name]
            self._is_changed = True
        if not self._is_changed:
            return
        self._is_changed = False
        try:
            whole = self._path.with_suffix(".part")
            whole.write_bytes(json.dumps(self._known, ensure_ascii=False).encode("utf-8", "surrogatepass"))
            whole.replace(self._path)
        except OSError as error:
            _log.warning("%s cannot be written, so office files are read once more at the next start: %s", self._path, error)
