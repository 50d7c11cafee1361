"""Answers the four RPCs: which version of a template a label means, and the prompt made with it. Free of I/O, clock and randomness.

Where versions are kept and what the labels point at is asked through `TemplateStore` and `Labels`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from services.common.events.limits import check_name
from services.common.platform.errors import Conflict, InvalidInput, NotFound, Unavailable
from services.prompt_assembler.core.prompt import Prompt, TokenCounter, fit, without_control_tokens
from services.prompt_assembler.core.question import Question, check_question
from services.prompt_assembler.core.template import FIRST_VERSION, Template, check_template

DEFAULT_LABEL = "production"
LABELS_UNAVAILABLE = "labels_unavailable"
STORE_UNAVAILABLE = "template_store_unavailable"
TOKENS_ESTIMATED = "tokens_estimated"


class TemplateNotFound(NotFound):
    """No such template, version or label. Retrying does not help."""


class LabelDangles(Conflict):
    """A label points at a version that is not in the store. Retrying does not help before the label is moved or the version put back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A template's newest version and where its labels point."""

    name: str
    newest_version: int
    labels: Mapping[str, int]


class TemplateStore(Protocol):
    """Where versions are kept. A version, once there, never changes."""

    async def versions(self, name: str) -> Sequence[int]:
        """Return the versions of a template, ascending; empty when there is none. Raises Unavailable."""
        ...

    async def get(self, name: str, version: int) -> Template | None:
        """Return that version, None when it is not there. Raises Unavailable."""
        ...

    async def names(self) -> Sequence[str]:
        """Return the names of all templates, sorted. Raises Unavailable."""
        ...

    async def add(self, template: Template) -> bool:
        """Keep `template` under its name and version; False when that version exists already. Raises Unavailable."""
        ...


class Labels(Protocol):
    """What labels point at."""

    @property
    def is_known(self) -> bool:
        """Whether the labels have been read once."""
        ...

    def of(self, template: str) -> Mapping[str, int]:
        """Return label -> version of a template."""
        ...


class Assembler:
    """Answers the four RPCs."""

    def __init__(self, store: TemplateStore, labels: Labels, counter: TokenCounter, *, max_versions: int) -> None:
        """`max_versions`: a template takes no more."""
        self._store, self._labels, self._counter, self._max_versions = store, labels, counter, max_versions

    async def assemble(self, name: str, label: str, question: Question) -> Prompt:
        """Return the prompt for a question.

        Raises:
            InvalidInput: a field is out of its range; the message names it.
            QuestionTooLong: the question alone is over the budget.
            TemplateNotFound: no such template or label.
            LabelDangles: the label means a version that is not there.
            Unavailable: the version is not here and the store cannot be read.
        """
        check_question(question)
        template, reason = await self._labelled(name, label or DEFAULT_LABEL)
        # In a thread: tokenizing what a caller may send can take longer than other callers should wait.
        messages, used, num_tokens = await asyncio.to_thread(fit, template, without_control_tokens(question, self._counter), self._counter)
        reasons = [reason] if reason else []
        if not self._counter.is_exact:
            reasons.append(TOKENS_ESTIMATED)
        return Prompt(
            messages=messages,
            prompt_version=f"{template.name}@v{template.version}",
            used_passage_ids=tuple(passage.passage_id for passage in used),
            prompt_tokens=num_tokens,
            degraded_reason=",".join(reasons),
        )

    async def put(self, template: Template) -> int:
        """Keep the template as its next version and return that; the same text as the newest version returns the newest.

        Raises:
            InvalidInput: the template cannot be used, or has too many versions already.
            Unavailable: the store cannot be written.
        """
        check_template(template)
        if template.version:
            raise InvalidInput(f"template.version: {template.version} was given; it must be 0, since the next number is taken here")
        while True:
            newest = max(await self._store.versions(template.name), default=0)
            known = await self._store.get(template.name, newest) if newest else None
            if known is not None and replace(known, version=0) == replace(template, version=0):
                return newest
            if newest >= self._max_versions:
                raise InvalidInput(f"template.name: {template.name!r} has {newest} versions already; choose another name")
            # False: somebody else took the number meanwhile. Look again; their text may be the same as this one.
            if await self._store.add(replace(template, version=newest + 1)):
                return newest + 1

    async def get(self, name: str, version: int, label: str) -> tuple[Template, tuple[str, ...]]:
        """Return a version (0: the one that the label points at) and the labels that point at it.

        Raises:
            InvalidInput: a name is malformed.
            TemplateNotFound: no such template, version or label.
            LabelDangles: the label means a version that is not there.
            Unavailable: the version is not here and the store cannot be read.
        """
        if version:
            check_name("name", name, InvalidInput)
            found = await self._store.get(name, version)
            if found is None:
                raise TemplateNotFound(f"template {name!r} has no version {version}")
        else:
            found, _ = await self._labelled(name, label or DEFAULT_LABEL)
        return found, tuple(sorted(label for label, target in self._labels.of(name).items() if target == found.version))

    async def summaries(self) -> list[Summary]:
        """Return all templates, by name. Raises Unavailable when the store cannot be read."""
        found = []
        for name in await self._store.names():
            newest = max(await self._store.versions(name), default=0)
            found.append(Summary(name=name, newest_version=newest, labels=self._labels.of(name)))
        return found

    async def _labelled(self, name: str, label: str) -> tuple[Template, str]:
        check_name("template", name, InvalidInput)
        check_name("label", label, InvalidInput)
        version, reason = self._labels.of(name).get(label, 0), ""
        is_set = bool(version)
        if not version and not self._labels.is_known:
            version, reason = await self._newest(name)
        elif not version and label == DEFAULT_LABEL:
            version = FIRST_VERSION
        elif not version:
            raise TemplateNotFound(f"template {name!r} has no label {label!r}; labels are set as the alias prompt/{name}/{label}")
        template = await self._store.get(name, version)
        if template is None and is_set:
            # Not "not found": the caller would take another template, and nobody would see that this one is lost.
            raise LabelDangles(f"template {name!r}: its label {label!r} means v{version}, which is not there")
        if template is None:
            raise TemplateNotFound(f"template {name!r}: there is none of that name")
        return template, reason

    async def _newest(self, name: str) -> tuple[int, str]:
        try:
            versions = await self._store.versions(name)
        except Unavailable:
            # The built-in version needs no store.
            return FIRST_VERSION, f"{LABELS_UNAVAILABLE},{STORE_UNAVAILABLE}"
        return max(versions, default=FIRST_VERSION), LABELS_UNAVAILABLE
