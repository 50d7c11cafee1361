"""The curated examples of every task, and what a tune still waits for. Pure; not thread-safe, its owner locks.

Examples have ids that are hashes of their content, so a topic that is read twice, or a curator that repeats itself, adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from services.common.events.chat import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt and the answer that a person wrote. `created_at_ms`: Unix milliseconds, of the curator."""

    example_id: str
    question: str
    messages: tuple[Message, ...]
    answer: str
    created_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRules:
    """When a tune may begin.

    Attributes:
        min_demonstrations: fewer teach nothing that lasts.
        min_new_demonstrations: an automatic tune waits for so many since the last one that the adapter gate decided about began.
        failed_retry_ms: a task whose tune failed is tuned again by itself after so long; twice as long after each further failure.
    """

    min_demonstrations: int
    min_new_demonstrations: int
    failed_retry_ms: int


@dataclass(slots=True)
class _Task:
    demonstrations: dict[str, Demonstration] = field(default_factory=dict)
    judged: set[str] = field(default_factory=set)


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
        if len(book.demonstrations) > self._max_per_task:
            del book.demonstrations[next(iter(book.demonstrations))]
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

    def num_demonstrations(self, task: str, *, since_ms: int = 0) -> int:
        """Return how many demonstrations there are that were made at `since_ms` or later."""
        book = self._tasks.get(task)
        if book is None:
            return 0
        return len(book.demonstrations) if since_ms <= 0 else sum(one.created_at_ms >= since_ms for one in book.demonstrations.values())

    def _book(self, task: str) -> _Task | None:
        if task not in self._tasks and len(self._tasks) >= self._max_tasks:
            return None
        return self._tasks.setdefault(task, _Task())


def waits_for(num_demonstrations: int, rules: TuneRules, *, has_evaluation: bool, evaluation_file: str) -> str:
    """Return what a tune of a task waits for, as a sentence; empty when one may start."""
    if num_demonstrations < rules.min_demonstrations:
        return f"{num_demonstrations} demonstrations are there and {rules.min_demonstrations} are needed"
    if not has_evaluation:
        return f"there is no evaluation file {evaluation_file}"
    return ""
