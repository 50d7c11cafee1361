"""llm.examples.v1 as a book that any thread may read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace

from tunemesh.events.v1 import example_pb2
from typing_extensions import override

from services.common.events.dead_letter_writer import Refused, only_log
from services.common.events.envelope import MalformedRecord, parse_value
from services.common.events.wire.chat import messages_of
from services.common.language.adapter_name import is_task
from services.common.platform.errors import InvalidInput
from services.common.platform.topic_follower import Reader, Record
from services.tuner import tuner
from services.tuner.examples import Demonstration, ExampleBook

_MAX_MESSAGES = 64
_MAX_ANSWER_CHARS = 64 * 1024
_MAX_USER_CHARS = 128
_log = logging.getLogger(__name__)


class Examples(tuner.Examples, Reader):
    """llm.examples.v1 as a book that any thread may read; one follower's thread writes it (see topic_follower.Reader)."""

    def __init__(self, book: ExampleBook, on_refused: Refused = only_log) -> None:
        """Begin with an empty book; `on_refused` is told of every record that is left out, and why."""
        self._book, self._lock, self._on_refused = book, threading.Lock(), on_refused

    @override
    def begin(self, records: Sequence[Record]) -> None:
        """Start over with these records. An empty topic is a broker that lost its log: what was known stays."""
        with self._lock:
            if records:
                self._book.clear()
            self._take(records)

    @override
    def extend(self, records: Sequence[Record]) -> None:
        """Take these in."""
        with self._lock:
            self._take(records)

    @override
    def tasks(self) -> list[str]:
        with self._lock:
            return self._book.tasks()

    @override
    def demonstrations(self, task: str) -> list[Demonstration]:
        with self._lock:
            return self._book.demonstrations(task)

    @override
    def num_demonstrations(self, task: str) -> int:
        with self._lock:
            return self._book.num_demonstrations(task)

    @override
    def counted_ms(self, task: str, *, most_of_a_user: int, since_ms: int = 0) -> list[int]:
        with self._lock:
            return self._book.counted_ms(task, most_of_a_user=most_of_a_user, since_ms=since_ms)

    @override
    def num_judged(self, task: str) -> int:
        with self._lock:
            return self._book.num_judged(task)

    def _take(self, records: Sequence[Record]) -> None:
        for record in records:
            try:
                self._take_one(parse_value(record.value, record.headers, example_pb2.LlmExample), record.timestamp)
            except (MalformedRecord, InvalidInput) as error:
                _log.warning("the example at offset %d is left out: %s", record.offset, error)
                self._on_refused(record, str(error))

    def _take_one(self, example: example_pb2.LlmExample, written_ms: int) -> None:
        if not example.example_id or not is_task(example.task):
            raise InvalidInput(f"it has no id, or its task {example.task[:80]!r} is not a valid name of one")
        if example.kind == example_pb2.EXAMPLE_KIND_JUDGED:
            self._book.add_judged(example.task, example.example_id)
        elif example.kind == example_pb2.EXAMPLE_KIND_DEMONSTRATION:
            # A curator that was behind writes late: what comes after a tune began is new, whenever the act was.
            found = demonstration_of(example)
            self._book.add_demonstration(example.task, replace(found, created_at_ms=max(found.created_at_ms, written_ms)))


def demonstration_of(example: example_pb2.LlmExample) -> Demonstration:
    """Return the example as a demonstration.

    Raises:
        InvalidInput: there is no prompt or no answer, or they are too long.
    """
    if not 1 <= len(example.messages) <= _MAX_MESSAGES:
        raise InvalidInput(f"its prompt has {len(example.messages)} messages, 1 to {_MAX_MESSAGES} are taken")
    if not example.answer.strip() or len(example.answer) > _MAX_ANSWER_CHARS:
        raise InvalidInput(f"its answer has {len(example.answer)} characters, 1 to {_MAX_ANSWER_CHARS} are taken")
    return Demonstration(
        example_id=example.example_id,
        question=example.question,
        messages=messages_of(example.messages),
        answer=example.answer,
        created_at_ms=example.created_at_ms,
        user_id=example.user_id[:_MAX_USER_CHARS],
        is_grounded=bool(example.passage_ids),
    )
