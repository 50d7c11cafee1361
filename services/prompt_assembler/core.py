"""From a template, a question and passages to the messages for the model, within a token budget. Free of I/O, clock and randomness.

What a template may contain and how its placeholders are filled is decided here; where versions are kept and what the labels point at
is asked through `TemplateStore` and `Labels`. Tokens are counted by a `TokenCounter`: it is not known here which model will answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from services.common.platform.errors import Conflict, InvalidInput, NotFound, Unavailable

DEFAULT_LABEL = "production"
FIRST_VERSION = 1
"""Answers while "production" was never set: a version that was only put is not live."""
LABELS_UNAVAILABLE = "labels_unavailable"
STORE_UNAVAILABLE = "template_store_unavailable"
TOKENS_ESTIMATED = "tokens_estimated"

MAX_NAME_BYTES = 64
MAX_TEMPLATE_BYTES = 32 * 1024
MAX_TEMPLATE_MESSAGES = 8
MAX_PROMPT_TOKENS = 131_072
MAX_QUESTION_BYTES = 32 * 1024
MAX_PASSAGES = 50
MAX_PASSAGE_BYTES = 64 * 1024
MAX_HISTORY = 200
MAX_TURN_BYTES = 32 * 1024

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_TEXT_PLACEHOLDER = re.compile(r"\{(question|context)\}")
_PASSAGE_PLACEHOLDER = re.compile(r"\{(title|text|number)\}")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_TEMPLATE_ROLES = ("system", "user", "assistant")
_TURN_ROLES = ("user", "assistant")


class TemplateNotFound(NotFound):
    """No such template, version or label. Retrying does not help."""


class LabelDangles(Conflict):
    """A label points at a version that is not in the store. Retrying does not help before the label is moved or the version put back."""


class QuestionTooLong(InvalidInput):
    """The question alone is over the budget. Retrying does not help; ask shorter, or allow more tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message. `role`: "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A piece of a document, as retrieved or as the caller gave it (then without an id)."""

    passage_id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One version of a named template; never changes once it has a version (counted from 1; 0: not yet put)."""

    name: str
    version: int
    messages: tuple[Turn, ...]
    max_prompt_tokens: int
    passage_format: str
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, what may be used for the answer (best first), and what was said before (oldest first)."""

    text: str
    passages: tuple[Passage, ...] = ()
    history: tuple[Turn, ...] = ()
    max_prompt_tokens: int = 0
    """0: the template's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model gets. `degraded_reason` is empty when nothing was missing."""

    messages: tuple[Turn, ...]
    prompt_version: str
    used_passage_ids: tuple[str, ...]
    prompt_tokens: int
    degraded_reason: str


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


class TokenCounter(Protocol):
    """Counts as the model that answers does."""

    @property
    def is_exact(self) -> bool:
        """Whether it has the model's tokenizer; else it estimates."""
        ...

    def count(self, messages: Sequence[Turn]) -> int:
        """Return the tokens of the whole prompt, with what the chat format adds."""
        ...

    def plain(self, text: str) -> str:
        """Return the text without anything that the model would take for the end or start of a turn."""
        ...


def check_name(field: str, name: str) -> None:
    """Raise InvalidInput, naming the field, unless it is 1 to 64 of a-z, 0-9, "_" and "-", not beginning with a sign."""
    if len(name) > MAX_NAME_BYTES or not _NAME.fullmatch(name):
        raise InvalidInput(f"{field}: {name[:80]!r} is not 1 to {MAX_NAME_BYTES} of a-z, 0-9, '_' and '-', starting with a letter or digit")


def check_template(template: Template) -> None:
    """Raise InvalidInput, naming the field, unless the template can be used."""
    check_name("template.name", template.name)
    messages = template.messages
    if not 1 <= len(messages) <= MAX_TEMPLATE_MESSAGES:
        raise InvalidInput(f"template.messages: {len(messages)} messages; a template has 1 to {MAX_TEMPLATE_MESSAGES}")
    for index, message in enumerate(messages):
        if message.role not in _TEMPLATE_ROLES:
            raise InvalidInput(f"template.messages[{index}].role: {message.role[:80]!r} is none of {', '.join(_TEMPLATE_ROLES)}")
    if messages[-1].role != "user" or "{question}" not in messages[-1].content:
        raise InvalidInput("template.messages: the last one must be of the user and contain {question}")
    if any("{question}" in message.content for message in messages[:-1]):
        raise InvalidInput("template.messages: {question} may stand in the last message only")
    size = sum(len(text.encode()) for text in (template.passage_format, template.description, *(message.content for message in messages)))
    if size > MAX_TEMPLATE_BYTES:
        raise InvalidInput(f"template: its texts have {size} bytes; at most {MAX_TEMPLATE_BYTES} are allowed")
    if not 1 <= template.max_prompt_tokens <= MAX_PROMPT_TOKENS:
        raise InvalidInput(f"template.max_prompt_tokens: {template.max_prompt_tokens} is not 1 to {MAX_PROMPT_TOKENS}")
    if takes_context(template) and "{text}" not in template.passage_format:
        raise InvalidInput("template.passage_format: it must contain {text}, since the messages contain {context}")


def check_question(question: Question) -> None:
    """Raise InvalidInput, naming the field, unless a prompt can be made of it."""
    if not question.text.strip():
        raise InvalidInput("question: it is empty")
    _check_bytes("question", question.text, MAX_QUESTION_BYTES)
    if len(question.passages) > MAX_PASSAGES:
        raise InvalidInput(f"passages: {len(question.passages)} passages; at most {MAX_PASSAGES} are taken")
    for index, passage in enumerate(question.passages):
        _check_bytes(f"passages[{index}]", passage.title + passage.text, MAX_PASSAGE_BYTES)
    if len(question.history) > MAX_HISTORY:
        raise InvalidInput(f"history: {len(question.history)} turns; at most {MAX_HISTORY} are taken")
    for index, turn in enumerate(question.history):
        if turn.role not in _TURN_ROLES:
            raise InvalidInput(f"history[{index}].role: {turn.role[:80]!r} is neither 'user' nor 'assistant'")
        _check_bytes(f"history[{index}].content", turn.content, MAX_TURN_BYTES)
    if question.max_prompt_tokens > MAX_PROMPT_TOKENS:
        raise InvalidInput(f"max_prompt_tokens: {question.max_prompt_tokens} is over {MAX_PROMPT_TOKENS}")


def _check_bytes(field: str, text: str, limit: int) -> None:
    size = len(text.encode())
    if size > limit:
        raise InvalidInput(f"{field}: it has {size} bytes; at most {limit} are taken")


def takes_context(template: Template) -> bool:
    """Whether passages have a place in the template."""
    return any("{context}" in message.content for message in template.messages)


def fill(template: Template, question: str, passages: Sequence[Passage], history: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return the template's messages with the placeholders filled, and the history before the last of them.

    Filling is one pass: a placeholder's name inside a question or a passage stays as it is written. Without passages, every paragraph
    (between blank lines) that names {context} is left out, so that no model is asked to answer from an empty context.
    """
    context = "\n".join(_write(template.passage_format, number, passage) for number, passage in enumerate(passages, 1))
    values = {"question": question, "context": context}
    filled = []
    for message in template.messages:
        text = message.content if passages else _without_context(message.content)
        filled.append(replace(message, content=_TEXT_PLACEHOLDER.sub(lambda match: values[match[1]], text)))
    kept = [message for message in filled[:-1] if message.content.strip()]
    return (*kept, *history, filled[-1])


def _write(passage_format: str, number: int, passage: Passage) -> str:
    values = {"number": str(number), "title": passage.title, "text": passage.text}
    return _PASSAGE_PLACEHOLDER.sub(lambda match: values[match[1]], passage_format)


def _without_context(text: str) -> str:
    if "{context}" not in text:
        return text
    paragraphs = [paragraph for paragraph in _BLANK_LINE.split(text) if "{context}" not in paragraph or "{question}" in paragraph]
    return "\n\n".join(paragraphs)


def fit(template: Template, question: Question, counter: TokenCounter) -> tuple[tuple[Turn, ...], tuple[Passage, ...], int]:
    """Return the messages, the passages in them and the number of tokens, within the budget.

    When the budget is short, the oldest turns go first, since an answer needs its passages more; then passages, from the end. The
    number of tokens falls with each step, so the least number of steps is found by bisection: ten countings where there are 250 steps.

    Raises:
        QuestionTooLong: even without history and passages it does not fit.
    """
    budget = question.max_prompt_tokens or template.max_prompt_tokens
    history = question.history
    passages = question.passages if takes_context(template) else ()

    def attempt(num_steps: int) -> tuple[tuple[Turn, ...], tuple[Passage, ...], int]:
        turns = _from_the_user_on(history[min(num_steps, len(history)) :])
        kept = passages[: len(passages) - max(0, num_steps - len(history))]
        messages = fill(template, question.text, kept, turns)
        return messages, kept, counter.count(messages)

    last = len(history) + len(passages)
    found = attempt(0)
    if found[2] <= budget:
        return found
    found = attempt(last)
    if found[2] > budget:
        raise QuestionTooLong(f"question: the prompt has {found[2]} tokens without any passage; at most {budget} are allowed")
    too_few, enough = 0, last
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        tried = attempt(middle)
        if tried[2] <= budget:
            enough, found = middle, tried
        else:
            too_few = middle
    return found


def _from_the_user_on(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """An answer whose question was left out goes too: many chat formats refuse a history that begins with an answer."""
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), len(turns))
    return tuple(turns[first:])


def _plain(question: Question, plain: Callable[[str], str]) -> Question:
    return replace(
        question,
        text=plain(question.text),
        passages=tuple(replace(passage, title=plain(passage.title), text=plain(passage.text)) for passage in question.passages),
        history=tuple(replace(turn, content=plain(turn.content)) for turn in question.history),
    )


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
        messages, used, num_tokens = await asyncio.to_thread(fit, template, _plain(question, self._counter.plain), self._counter)
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
            check_name("name", name)
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
        check_name("template", name)
        check_name("label", label)
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
