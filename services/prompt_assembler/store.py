"""Where templates are kept: the built-in ones beside this module, put versions as ARTIFACTS/prompts/NAME/vN.yaml, never changed.

    services/prompt_assembler/templates/answer.yaml     version 1 of "answer"
    ARTIFACTS/prompts/answer/v2.yaml                    version 2

Knows no label and fills no placeholder.
"""

from __future__ import annotations

import asyncio
import logging
import os
import posixpath
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import override

from services.common.events.chat import Message
from services.common.platform.errors import ConfigurationError, InvalidInput, Unavailable
from services.common.platform.stores import check_store, is_local, opened_store
from services.prompt_assembler.core.assembler import TemplateStore
from services.prompt_assembler.core.template import FIRST_VERSION, MAX_TEMPLATE_BYTES, Template, check_template

BUILT_IN_FOLDER = Path(__file__).with_name("templates")

_FILE = re.compile(r"v([1-9][0-9]{0,8})\.yaml")
# YAML escapes and indents: a file may be larger than the texts in it.
_MAX_FILE_BYTES = 4 * MAX_TEMPLATE_BYTES
_MAX_NAMES = 10_000
_MAX_MISSING = 1_000

_log = logging.getLogger(__name__)


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    role: str
    content: str


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    format: int = Field(ge=1, le=1)
    description: str = ""
    max_prompt_tokens: int
    passage_format: str = ""
    messages: tuple[_Message, ...]


def parse_template(raw: bytes, *, name: str, version: int) -> Template:
    """Return the template in a file.

    Raises:
        InvalidInput: it is too large, not YAML, has an unknown key, or cannot be used. One line.
    """
    if len(raw) > _MAX_FILE_BYTES:
        raise InvalidInput(f"the file has more than {_MAX_FILE_BYTES} bytes")
    try:
        file = _File.model_validate(yaml.safe_load(raw))
    except yaml.YAMLError as error:
        raise InvalidInput(f"not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(top)"
        raise InvalidInput(f"key {key}: {first['msg']}") from error
    template = Template(
        name=name,
        version=version,
        messages=tuple(Message(role=message.role, content=message.content) for message in file.messages),
        max_prompt_tokens=file.max_prompt_tokens,
        passage_format=file.passage_format,
        description=file.description,
    )
    check_template(template)
    return template


def write_template(template: Template) -> bytes:
    """Return the file of a template; `parse_template` gives the same template back."""
    file = {
        "format": 1,
        "description": template.description,
        "max_prompt_tokens": template.max_prompt_tokens,
        "passage_format": template.passage_format,
        "messages": [{"role": turn.role, "content": turn.content} for turn in template.messages],
    }
    return yaml.safe_dump(file, sort_keys=False, allow_unicode=True).encode()


def load_built_in(folder: Path = BUILT_IN_FOLDER) -> list[Template]:
    """Return version 1 of every template that comes with the program.

    Raises:
        ConfigurationError: a file cannot be read or used.
    """
    found = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            found.append(parse_template(path.read_bytes(), name=path.stem, version=FIRST_VERSION))
        except (OSError, InvalidInput) as error:
            raise ConfigurationError(f"template {path}: {error}") from error
    return found


class FileTemplateStore(TemplateStore):
    """Meets `core.TemplateStore` over fsspec. All files are read and written in threads; one event loop uses it."""

    def __init__(self, artifacts_url: str, built_in: Iterable[Template], *, check_s: float, monotonic_s: Callable[[], float]) -> None:
        """Nothing is read before the first call.

        Args:
            artifacts_url: fsspec URL; templates are under prompts/.
            built_in: versions that need no file.
            check_s: what was found or missing is believed for so long.
            monotonic_s: the clock for that.
        Raises:
            NoSuchStore: the URL is of no store that this program knows.
        """
        check_store(artifacts_url)
        self._url = posixpath.join(artifacts_url, "prompts")
        self._known: dict[tuple[str, int], Template] = {(template.name, template.version): template for template in built_in}
        self._built_in = {name for name, _ in self._known}
        self._check_s, self._monotonic_s = check_s, monotonic_s
        self._missing: dict[tuple[str, int], float] = {}
        self._listings: dict[str, tuple[float, tuple[int, ...]]] = {}

    @override
    async def names(self) -> Sequence[str]:
        entries = await asyncio.to_thread(self._list)
        return sorted(self._built_in | {entry for entry in entries[:_MAX_NAMES] if "." not in entry})

    @override
    async def versions(self, name: str) -> Sequence[int]:
        listing = self._listings.get(name)
        now_s = self._monotonic_s()
        if listing is not None and now_s < listing[0] + self._check_s:
            return listing[1]
        entries = await asyncio.to_thread(self._list, name)
        found = {int(match[1]) for match in map(_FILE.fullmatch, entries) if match}
        if name in self._built_in:
            found.add(FIRST_VERSION)
        if found:  # names are the callers': only those that exist are remembered
            self._listings[name] = (now_s, tuple(sorted(found)))
        return sorted(found)

    @override
    async def get(self, name: str, version: int) -> Template | None:
        """Return that version, None when it is not there. A version, once read, is kept: it cannot change."""
        known = self._known.get((name, version))
        if known is not None:
            return known
        now_s = self._monotonic_s()
        missing_since_s = self._missing.get((name, version))
        if missing_since_s is not None and now_s < missing_since_s + self._check_s:
            return None
        known = await asyncio.to_thread(self._read, name, version)
        if known is not None:
            self._known[name, version] = known
        else:
            self._remember_missing(name, version, now_s)
        return known

    def _remember_missing(self, name: str, version: int, now_s: float) -> None:
        """Remember that a template is not there: a task without one of its own asks for it with every request."""
        if len(self._missing) >= _MAX_MISSING:
            self._missing.clear()
        self._missing[name, version] = now_s

    @override
    async def add(self, template: Template) -> bool:
        self._listings.pop(template.name, None)
        if (template.name, template.version) in self._known:
            return False
        added = await asyncio.to_thread(self._create, self._file(template.name, template.version), write_template(template))
        self._listings.pop(template.name, None)
        if added:
            _log.info("template %s@v%d is put", template.name, template.version)
            self._missing.pop((template.name, template.version), None)
            self._known[template.name, template.version] = template
        return added

    def _list(self, *folder: str) -> list[str]:
        with opened_store(posixpath.join(self._url, *folder), "listed") as (filesystem, path):
            # An object store's client may keep listings of its own.
            filesystem.invalidate_cache(path)
            try:
                return sorted(posixpath.basename(entry.rstrip("/")) for entry in filesystem.ls(path, detail=False))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def _file(self, name: str, version: int) -> str:
        return posixpath.join(self._url, name, f"v{version}.yaml")

    def _read(self, name: str, version: int) -> Template | None:
        url = self._file(name, version)
        with opened_store(url, "read") as (filesystem, path):
            try:
                with filesystem.open(path, "rb") as file:
                    raw = bytes(file.read(_MAX_FILE_BYTES + 1))
            except (FileNotFoundError, NotADirectoryError):
                return None
        try:
            return parse_template(raw, name=name, version=version)
        except InvalidInput as error:
            raise Unavailable(f"template {url} is damaged: {error}") from error

    def _create(self, url: str, content: bytes) -> bool:
        with opened_store(url, "written") as (filesystem, path):
            try:
                if is_local(filesystem):
                    return _create_local(Path(path), content)
                # Object stores do this as one conditional write.
                filesystem.pipe_file(path, content, mode="create")
                return True
            except FileExistsError:
                return False


def _create_local(path: Path, content: bytes) -> bool:
    """Write beside, flush, link: whole or not at all, and a link never replaces what another process created meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".incomplete-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        return True
    finally:
        Path(temporary).unlink()
