"""From a template and a question to the messages for the model, within a token budget. Pure.

Tokens are counted by a `TokenCounter`: it is not known here which model will answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from services.common.events.chat import Message, Passage
from services.common.platform.errors import InvalidInput
from services.prompt_assembler.core.question import Question
from services.prompt_assembler.core.template import Template, takes_context

_TEXT_PLACEHOLDER = re.compile(r"\{(question|context)\}")
_PASSAGE_PLACEHOLDER = re.compile(r"\{(title|text|number)\}")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


class QuestionTooLong(InvalidInput):
    """The question alone is over the budget. Retrying does not help; ask shorter, or allow more tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model gets. `degraded_reason` is empty when nothing was missing."""

    messages: tuple[Message, ...]
    prompt_version: str
    used_passage_ids: tuple[str, ...]
    prompt_tokens: int
    degraded_reason: str


class TokenCounter(Protocol):
    """Counts as the model that answers does."""

    @property
    def is_exact(self) -> bool:
        """Whether it has the model's tokenizer; else it estimates."""
        ...

    def count(self, messages: Sequence[Message]) -> int:
        """Return the tokens of the whole prompt, with what the chat format adds."""
        ...

    def plain(self, text: str) -> str:
        """Return the text without anything that the model would take for the end or start of a turn."""
        ...


def fill(template: Template, question: str, passages: Sequence[Passage], history: Sequence[Message]) -> tuple[Message, ...]:
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


def fit(template: Template, question: Question, counter: TokenCounter) -> tuple[tuple[Message, ...], tuple[Passage, ...], int]:
    """Return the messages, the passages in them and the number of tokens, within the budget.

    When the budget is short, the oldest turns go first, since an answer needs its passages more; then passages, from the end. The
    number of tokens falls with each step, so the least number of steps is found by bisection: ten countings where there are 250 steps.

    Raises:
        QuestionTooLong: even without history and passages it does not fit.
    """
    budget = question.max_prompt_tokens or template.max_prompt_tokens
    history = question.history
    passages = question.passages if takes_context(template) else ()

    def attempt(num_steps: int) -> tuple[tuple[Message, ...], tuple[Passage, ...], int]:
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


def _from_the_user_on(turns: Sequence[Message]) -> tuple[Message, ...]:
    """An answer whose question was left out goes too: many chat formats refuse a history that begins with an answer."""
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), len(turns))
    return tuple(turns[first:])


def without_control_tokens(question: Question, counter: TokenCounter) -> Question:
    """Return the question with nothing in it that the model would take for the end or start of a turn."""
    plain = counter.plain
    return replace(
        question,
        text=plain(question.text),
        passages=tuple(replace(passage, title=plain(passage.title), text=plain(passage.text)) for passage in question.passages),
        history=tuple(replace(turn, content=plain(turn.content)) for turn in question.history),
    )
