"""What stands in llm.examples.v1 already, followed into memory."""

from __future__ import annotations

from collections.abc import Sequence

from tunemesh.events.v1.example_pb2 import LlmExample

from services.common.events.envelope import MalformedRecord, parse_value
from services.common.platform.topic_follower import Record


class SeenExamples:
    """The ids of the examples in the log, whichever curator wrote them, and of those that this process is writing.

    A `Reader` for the TopicFollower and the `Seen` of the core: one thread follows, the event loop asks. About 120 bytes an example.
    """

    def __init__(self) -> None:
        """Nothing is known before a follower begins."""
        self._logged: set[int] = set()
        self._written: set[int] = set()

    def begin(self, records: Sequence[Record]) -> None:
        """Start over with these: the broker's log may be another than before."""
        self._logged = _ids_in(records)
        self._written = set()

    def extend(self, records: Sequence[Record]) -> None:
        """Take these in."""
        self._logged |= _ids_in(records)

    def has(self, example_id: str) -> bool:
        """Return whether the example stands in the log, or is on its way there."""
        number = int(example_id, 16)
        return number in self._logged or number in self._written

    def add(self, example_id: str) -> None:
        """Note an example that is being written."""
        self._written.add(int(example_id, 16))

    def forget_unconfirmed(self) -> None:
        """Forget what was being written: without its partition it may never arrive. From now on only the log counts."""
        self._written = set()


def _ids_in(records: Sequence[Record]) -> set[int]:
    """Foreign records have ids of their own; those that are no hexadecimal number cannot equal one of ours."""
    found = set()
    for record in records:
        try:
            example_id = parse_value(record.value, record.headers, LlmExample).example_id
            found.add(int(example_id, 16))
        except (MalformedRecord, ValueError):
            continue
    return found
