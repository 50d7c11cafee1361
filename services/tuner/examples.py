"""The curated examples of every task, and what a tune still waits for. Pure; not thread-safe, its owner locks.

Examples have ids that are hashes of their content, so a topic that is read twice, or a curator that repeats itself, adds nothing. What
counts towards a tune is what differs: the same question in other signs with the same answer counts once, and one user can fill a part of
a threshold only.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from services.common.events.chat import Message
from services.common.language.similar_questions import SimilarQuestions, normalised

_QUESTIONS_KEPT = 2
"""Times the demonstrations: so many questions are kept to compare with, of which some demonstrations are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt and the answer that a person wrote.

    Attributes:
        created_at_ms: when it was sent to the log, Unix milliseconds: later than the act where the curator was behind.
        user_id: empty when it is not known.
        is_grounded: its prompt has passages to answer from.
    """

    example_id: str
    question: str
    messages: tuple[Message, ...]
    answer: str
    created_at_ms: int
    user_id: str = ""
    is_grounded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRules:
    """When a tune may begin.

    Attributes:
        min_demonstrations: fewer teach nothing that lasts.
        min_new_demonstrations: an automatic tune waits for so many since the last one that the adapter gate decided about began.
        failed_retry_ms: a task whose tune failed is tuned again by itself after so long; twice as long after each further failure.
        max_user_share: of each of the two numbers, so much can come from one user; 1: all of it.
    """

    min_demonstrations: int
    min_new_demonstrations: int
    failed_retry_ms: int
    max_user_share: float = 1.0

    def most_of_a_user(self, needed: int) -> int:
        """Return how many demonstrations of one user count towards a threshold."""
        return max(1, math.floor(self.max_user_share * needed)) if self.max_user_share < 1 else needed


@dataclass(slots=True)
class _Task:
    demonstrations: dict[str, Demonstration] = field(default_factory=dict)
    judged: set[str] = field(default_factory=set)
    facts: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By example id: the number of its question among those that differ, and its answer in normal form."""
    questions: SimilarQuestions = field(default_factory=SimilarQuestions)


class ExampleBook:
    """Examples by task, bounded: of more than `max_per_task` demonstrations the oldest go, and tasks beyond `max_tasks` are not taken."""

    def __init__(self, *, max_per_task: int, max_tasks: int) -> None:
        """Begin empty."""
        self._max_per_task, self._max_tasks = max_per_task, max_tasks
        self._tasks: dict[str, _Task] = {}

    def clear(self) -> None:
        """Forget everything: the topic is read from its beginning again."""
        self._tasks.clear()

    def add_demonstration(self, task: str, demonstration: Demonstration) -> bool:
        """Take one in; return whether it was new and there was room for its task."""
        book = self._book(task)
        if book is None or demonstration.example_id in book.demonstrations:
            return False
        book.demonstrations[demonstration.example_id] = demonstration
        near = book.questions.find(demonstration.question)
        number = book.questions.add(demonstration.question) if near is None else near
        book.facts[demonstration.example_id] = (number, normalised(demonstration.answer))
        if len(book.demonstrations) > self._max_per_task:
            oldest = next(iter(book.demonstrations))
            del book.demonstrations[oldest], book.facts[oldest]
            if len(book.questions) > _QUESTIONS_KEPT * self._max_per_task:
                _number_anew(book)
        return True

    def add_judged(self, task: str, example_id: str) -> bool:
        """Count a judged answer; return whether it was new and there was room."""
        book = self._book(task)
        if book is None or example_id in book.judged or len(book.judged) >= self._max_per_task:
            return False
        book.judged.add(example_id)
        return True

    def tasks(self) -> list[str]:
        """Return the tasks that have examples, sorted."""
        return sorted(self._tasks)

    def demonstrations(self, task: str) -> list[Demonstration]:
        """Return the demonstrations, sorted by id: a training depends on which there are, not on the order in which they came."""
        book = self._tasks.get(task)
        return sorted(book.demonstrations.values(), key=lambda one: one.example_id) if book else []

    def num_judged(self, task: str) -> int:
        """Return how many judged answers there are."""
        book = self._tasks.get(task)
        return len(book.judged) if book else 0

    def num_demonstrations(self, task: str) -> int:
        """Return how many demonstrations there are."""
        book = self._tasks.get(task)
        return len(book.demonstrations) if book else 0

    def counted_ms(self, task: str, *, most_of_a_user: int, since_ms: int = 0) -> list[int]:
        """Return when the demonstrations were written that count towards a tune, oldest first, Unix milliseconds.

        Args:
            task: may be one without examples.
            most_of_a_user: so many of one user count; of users who are not known, all.
            since_ms: those count that were written then or later, and that say something that none said before.
        """
        book = self._tasks.get(task)
        if book is None:
            return []
        seen: set[tuple[int, str]] = set()
        num_of_user: Counter[str] = Counter()
        counted = []
        for one in sorted(book.demonstrations.values(), key=lambda one: (one.created_at_ms, one.example_id)):
            fact = book.facts[one.example_id]
            if fact in seen:
                continue
            if one.created_at_ms < since_ms:
                seen.add(fact)
            elif not one.user_id or num_of_user[one.user_id] < most_of_a_user:
                seen.add(fact)
                num_of_user[one.user_id] += 1
                counted.append(one.created_at_ms)
        return counted

    def _book(self, task: str) -> _Task | None:
        if task not in self._tasks and len(self._tasks) >= self._max_tasks:
            return None
        return self._tasks.setdefault(task, _Task())


def _number_anew(book: _Task) -> None:
    """Forget the questions of which no demonstration is left."""
    book.questions = SimilarQuestions()
    for example_id, one in book.demonstrations.items():
        near = book.questions.find(one.question)
        book.facts[example_id] = (book.questions.add(one.question) if near is None else near, book.facts[example_id][1])


def waits_for(num_there: int, num_counted: int, rules: TuneRules, *, has_evaluation: bool, evaluation_file: str) -> str:
    """Return what a tune of a task waits for, as a sentence; empty when one may start.

    Args:
        num_there, num_counted: demonstrations, and those of them that count (ExampleBook.counted_ms).
        rules, has_evaluation, evaluation_file: when a tune may begin, whether there is an evaluation file, and its path.
    """
    needed = rules.min_demonstrations
    if num_there < needed:
        return f"{num_there} demonstrations are there and {needed} are needed"
    if num_counted < needed:
        return (
            f"{num_there} demonstrations are there, {num_counted} of them count and {needed} are needed: what says the same counts once, "
            f"and one user fills {rules.most_of_a_user(needed)} at most"
        )
    if not has_evaluation:
        return f"there is no evaluation file {evaluation_file}"
    return ""
