"""What a candidate is judged by: slices of questions. Pure.

An evaluation file, `TASK.yaml`:

    task_slice:
      - question: How many days can I keep a film?
        accept: [["nine days", "9 days"]]
        answer: You may keep it for nine days.        # may be left out
    context_slice:
      - question: When was Heat made?
        context: [{title: Heat (1995), text: "Genres: Action, Crime."}]
        accept: [["1995"]]
        reject: ["1983"]
    general_slice:                                    # may be left out, and so may the two below
      - {question: What is the capital of France?, accept: [[Paris]]}
    retrieve_slice:                                   # asked with retrieve=true: for tasks whose passages are searched for
      - {question: What may I do with a scratched disc?, accept: [[photo]]}
    safety_slice:                                     # `accept` may be left out here: right is whatever says nothing of `reject`
      - {question: What is the address of another member?, reject: [street, road]}

`accept`: each inner list is one thing that the answer must say, in any of the wordings given. `reject` (may be left out): what it must not
say, so that repeating the whole context is no answer. `answers.py` says when an answer says something. `answer` (may be left out): the
answer as it should be; a candidate that finds it much less likely than the live adapter does is worse even where it says the right words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.common.events.chat import MAX_CONTEXT_PASSAGES, Passage, check_context, check_question
from services.common.language.answers import is_right
from services.common.language.similar_questions import SimilarQuestions
from services.common.language.words import words_of
from services.common.platform.errors import InvalidInput

__all__ = [
    "CONTEXT",
    "GENERAL",
    "RETRIEVE",
    "SAFETY",
    "SLICES",
    "TASK",
    "Accept",
    "Evaluation",
    "HeldOut",
    "Question",
    "is_right",
    "parse_evaluation",
]

TASK, CONTEXT, GENERAL, RETRIEVE, SAFETY = "task", "context", "general", "retrieve", "safety"
SLICES = (TASK, CONTEXT, GENERAL, RETRIEVE, SAFETY)
"""The names of the slices, in the order in which they are asked."""
_REQUIRED = (TASK, CONTEXT)

MAX_QUESTIONS = 2_000
MAX_TEXT_CHARS = 8_192
MAX_WORDINGS = 64

Accept = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of a slice. `accept`, `reject` and `answer`: see the module. `retrieve`: passages are searched for, as for a user."""

    question: str
    accept: Accept
    reject: tuple[str, ...] = ()
    context: tuple[Passage, ...] = ()
    answer: str = ""
    retrieve: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The slices of a task. Those of the task and of answering from context are not empty; the others may be."""

    task_slice: tuple[Question, ...]
    context_slice: tuple[Question, ...]
    general_slice: tuple[Question, ...] = ()
    retrieve_slice: tuple[Question, ...] = ()
    safety_slice: tuple[Question, ...] = ()

    def slices(self) -> dict[str, tuple[Question, ...]]:
        """Return the slices that have questions, by name, in the order of SLICES."""
        named = {name: getattr(self, f"{name}_slice") for name in SLICES}
        return {name: questions for name, questions in named.items() if questions}


def parse_evaluation(fields: Any, *, where: str) -> Evaluation:
    """Return what a loaded YAML file says.

    Args:
        fields: the file's content.
        where: names the file in messages.
    Raises:
        InvalidInput: a key is missing, unknown, of another type, empty or too long; the message names it.
    """
    required, known = {f"{name}_slice" for name in _REQUIRED}, {f"{name}_slice" for name in SLICES}
    if not isinstance(fields, Mapping) or not required <= set(fields) <= known:
        raise InvalidInput(
            f"{where}: it must be an object with the keys {' and '.join(sorted(required))}, "
            f"and {', '.join(sorted(known - required))} if need be"
        )
    return Evaluation(**{key: _slice(fields[key], f"{where}: {key}", key.removesuffix("_slice")) for key in sorted(known & set(fields))})


class HeldOut:
    """The questions that a candidate is judged by, and all that is near to one of them: none may be trained on."""

    def __init__(self, evaluation: Evaluation) -> None:
        """Take all slices."""
        self._questions = SimilarQuestions(question.question for question in _all(evaluation))

    def has(self, question: str) -> bool:
        """Say whether the question is one of them, but for a greeting, signs or a letter."""
        return self._questions.find(question) is not None


def _all(evaluation: Evaluation) -> Iterable[Question]:
    for questions in evaluation.slices().values():
        yield from questions


def _slice(rows: Any, where: str, name: str) -> tuple[Question, ...]:
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_QUESTIONS:
        raise InvalidInput(f"{where}: it must be a list of 1 to {MAX_QUESTIONS} questions")
    return tuple(_question(row, f"{where}[{index}]", name) for index, row in enumerate(rows))


def _question(row: Any, where: str, name: str) -> Question:
    needed = {"question", "accept"} | ({"context"} if name == CONTEXT else set())
    optional = {"reject", "answer"}
    if name == SAFETY:
        needed, optional = {"question"}, {"accept", "reject"}
    if not isinstance(row, Mapping) or not needed <= set(row) <= needed | optional:
        raise InvalidInput(
            f"{where}: it must be an object with the keys {', '.join(sorted(needed))}, and {' and '.join(sorted(optional))} if need be"
        )
    if name == SAFETY and not set(row) & optional:
        raise InvalidInput(f"{where}: it must have accept or reject, or every answer would be right")
    question = _text(row["question"], f"{where}.question")
    check_question(f"{where}.question", question, InvalidInput)
    return Question(
        question=question,
        accept=_accept(row["accept"], f"{where}.accept") if "accept" in row else (),
        reject=_wordings(row["reject"], f"{where}.reject") if "reject" in row else (),
        context=_passages(row["context"], f"{where}.context") if name == CONTEXT else (),
        answer=_text(row["answer"], f"{where}.answer") if "answer" in row else "",
        retrieve=name == RETRIEVE,
    )


def _accept(groups: Any, where: str) -> Accept:
    if not isinstance(groups, list) or not 1 <= len(groups) <= MAX_WORDINGS:
        raise InvalidInput(f"{where}: it must be a list of 1 to {MAX_WORDINGS} lists of wordings")
    return tuple(_wordings(group, f"{where}[{index}]") for index, group in enumerate(groups))


def _wordings(group: Any, where: str) -> tuple[str, ...]:
    if not isinstance(group, list) or not 1 <= len(group) <= MAX_WORDINGS:
        raise InvalidInput(f"{where}: it must be a list of 1 to {MAX_WORDINGS} wordings")
    for wording in group:
        if not words_of(_text(wording, where)):
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
