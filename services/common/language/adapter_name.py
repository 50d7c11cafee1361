"""What a LoRA adapter is called: BASE--TASK--vN. A name is used once: what it stands for never changes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from services.common.platform.errors import InvalidInput

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._]|-(?!-))*"
_NAME = re.compile(rf"(?P<base>{_PART})--(?P<task>{_PART})--v(?P<version>[1-9][0-9]{{0,8}})")
_TASK = re.compile(_PART)
_MAX_PART_CHARS = 100


class BadAdapterName(InvalidInput):
    """The text is no adapter name. Retrying does not help."""


@dataclass(frozen=True, slots=True, order=True)
class AdapterName:
    """ "base--task--vN". Ordered by base, task and version."""

    base: str
    task: str
    version: int

    def __str__(self) -> str:
        return f"{self.base}--{self.task}--v{self.version}"

    @classmethod
    def parse(cls, text: str) -> AdapterName:
        """Return the parts of a name.

        Raises:
            BadAdapterName: it is none.
        """
        found = _NAME.fullmatch(text) if len(text) <= 2 * _MAX_PART_CHARS + 16 else None
        if found is None or found["base"].endswith("-") or found["task"].endswith("-"):
            raise BadAdapterName(f"{text[:200]!r} is no adapter name: it must be BASE--TASK--vN, e.g. SmolLM2-135M-Instruct--helpdesk--v1")
        return cls(found["base"], found["task"], int(found["version"]))

    @classmethod
    def first(cls, base: str, task: str) -> AdapterName:
        """Return version 1 for a base and a task.

        Raises:
            BadAdapterName: one of them cannot be part of a name.
        """
        return cls.parse(f"{base}--{task}--v1")

    def next(self) -> AdapterName:
        """Return the name of the version after this one."""
        return AdapterName(self.base, self.task, self.version + 1)


def is_task(text: str) -> bool:
    """Whether the text can be a task: letters, digits, ".", "_" and "-" (never "--"), at most 100."""
    return len(text) <= _MAX_PART_CHARS and bool(_TASK.fullmatch(text)) and not text.endswith("-")
