"""What a candidate is judged by: questions of its task, questions with the context that answers them, and when an answer is right. Pure.

An evaluation file, `TASK.yaml`:

    task_slice:
      - question: How many days can I keep a film?
        accept: [["nine days", "9 days"]]
    context_slice:
      - question: When was Heat made?
        context: [{title: Heat (1995), text: "Genres: Action, Crime."}]
        accept: [["1995"]]
        reject: ["1983"]

`accept`: each inner list is one thing that the answer must say, in any of the wordings given. `reject` (may be left out): what it must not
say, so that repeating the whole context is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.common.events.chat import MAX_CONTEXT_PASSAGES, Passage, check_context, check_question
from services.common.platform.errors import InvalidInput

MAX_QUESTIONS = 2_000
MAX_TEXT_CHARS = 8_192
MAX_WORDINGS = 64

_NOT_A_WORD = re.compile(r"[\W_]+")

Accept = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of a slice. `accept` and `reject`: see the module."""

    question: str
    accept: Accept
    reject: tuple[str, ...] = ()
    context: tuple[Passage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Both slices of a task; neither is empty."""

    task_slice: tuple[Question, ...]
    context_slice: tuple[Question, ...]


def is_right(answer: str, accept: Sequence[Sequence[str]], reject: Sequence[str] = ()) -> bool:
    """Say whether the answer has one wording of each group and none of `reject`, as whole words; case and punctuation do not matter."""
    text = _words(answer)
    return all(any(_words(wording) in text for wording in group) for group in accept) and not any(_words(word) in text for word in reject)


def parse_evaluation(fields: Any, *, where: str) -> Evaluation:
    """Return what a loaded YAML file says.

    Args:
        fields: the file's content.
        where: names the file in messages.
    Raises:
        InvalidInput: a key is missing, unknown, of another type, empty or too long; the message names it.
    """
    if not isinstance(fields, Mapping) or set(fields) != {"task_slice", "context_slice"}:
        raise InvalidInput(f"{where}: it must be an object with exactly the keys task_slice and context_slice")
    task_slice = _slice(fields["task_slice"], f"{where}: task_slice", with_context=False)
    context_slice = _slice(fields["context_slice"], f"{where}: context_slice", with_context=True)
    return Evaluation(task_slice=task_slice, context_slice=context_slice)


class HeldOut:
    """The questions that a candidate is judged by, compared as words: none may be trained on."""

    def __init__(self, evaluation: Evaluation) -> None:
        """Take both slices."""
        self._questions = {_words(question.question) for question in (*evaluation.task_slice, *evaluation.context_slice)}

    def has(self, question: str) -> bool:
        """Say whether the question is one of them."""
        return _words(question) in self._questions


def _words(text: str) -> str:
    """Blanks at both ends, so that "9 days" is not found in "29 days"."""
    return f" {_NOT_A_WORD.sub(' ', text.casefold()).strip()} "


def _slice(rows: Any, where: str, *, with_context: bool) -> tuple[Question, ...]:
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_QUESTIONS:
        raise InvalidInput(f"{where}: it must be a list of 1 to {MAX_QUESTIONS} questions")
    return tuple(_question(row, f"{where}[{index}]", with_context=with_context) for index, row in enumerate(rows))


def _question(row: Any, where: str, *, with_context: bool) -> Question:
    keys = {"question", "accept", "context"} if with_context else {"question", "accept"}
    if not isinstance(row, Mapping) or set(row) | {"reject"} != keys | {"reject"}:
        raise InvalidInput(f"{where}: it must be an object with the keys {', '.join(sorted(keys))}, and reject if need be")
    question = _text(row["question"], f"{where}.question")
    check_question(f"{where}.question", question, InvalidInput)
    return Question(
        question=question,
        accept=_accept(row["accept"], f"{where}.accept"),
        reject=_wordings(row["reject"], f"{where}.reject") if "reject" in row else (),
        context=_passages(row["context"], f"{where}.context") if with_context else (),
    )


def _accept(groups: Any, where: str) -> Accept:
    if not isinstance(groups, list) or not 1 <= len(groups) <= MAX_WORDINGS:
        raise InvalidInput(f"{where}: it must be a list of 1 to {MAX_WORDINGS} lists of wordings")
    return tuple(_wordings(group, f"{where}[{index}]") for index, group in enumerate(groups))


def _wordings(group: Any, where: str) -> tuple[str, ...]:
    if not isinstance(group, list) or not 1 <= len(group) <= MAX_WORDINGS:
        raise InvalidInput(f"{where}: it must be a list of 1 to {MAX_WORDINGS} wordings")
    for wording in group:
        if not _words(_text(wording, where)).strip():
            raise InvalidInput(f"{where}: {wording!r} has neither a letter nor a digit, and would be found in every answer")
    return tuple(group)


def _passages(rows: Any, where: str) -> tuple[Passage, ...]:
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_CONTEXT_PASSAGES:
        raise InvalidInput(f"{where}: it must be a list of 1 to {MAX_CONTEXT_PASSAGES} passages")
    passages = []
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping) or set(row) != {"title", "text"}:
            raise InvalidInput(f"{where}[{index}]: it must be an object with exactly the keys text and title")
        passages.append(Passage(_text(row["title"], f"{where}[{index}].title"), _text(row["text"], f"{where}[{index}].text")))
    check_context(where, passages, InvalidInput)  # the router takes no more with a question
    return tuple(passages)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TEXT_CHARS:
        raise InvalidInput(f"{where}: it must be a text of 1 to {MAX_TEXT_CHARS} characters (quote numbers)")
    return value
