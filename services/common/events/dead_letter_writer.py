"""Dead letters of a topic that a process follows by itself, outside any consumer group (catalog.v1, control.v1, the deltas …).

Every replica reads such a topic whole at each of its starts and meets the same unusable records again. So before the first letter the
dead-letter topic is read once, and a record that has its letter gets no other. Replicas that meet a record at the same moment may write one
each: a letter's name (topic, partition, offset, reason) is the same. A letter that the broker refuses is written with an
excerpt of its record or without its content, and logged and dropped if that is refused, too: it holds up no other. Imports in both
environments.
"""

from __future__ import annotations

import logging
import threading
from array import array
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from kafka.errors import KafkaError
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.content import MalformedRecord
from services.common.events.dead_letter_reasons import MALFORMED
from services.common.events.dead_letters import dead_letter, dead_letter_headers
from services.common.events.envelope import parse_value
from services.common.events.topics import Topic
from services.common.events.undeliverable import shorter
from services.common.platform import kafka_record
from services.common.platform.errors import Unavailable
from services.common.platform.kafka import assigned_consumer, records_to_end
from services.common.platform.kafka_batches import KAFKA_PYTHON_PACKAGES
from services.common.platform.kafka_compression import Compression, compression_type
from services.common.platform.kafka_producer import REFUSALS, send_each
from services.common.platform.topic_follower import Record

_RETRY_S = 2.0
_ACKNOWLEDGED_WITHIN_S = 10.0
_MAX_WAITING = 1_000
_MAX_WAITING_BYTES = 16 * 1024 * 1024
"""While the broker is down; what is above is logged only, and gets its letter at the next start."""
_MAX_KNOWN = 1_000_000
"""Letters of a topic, of 8 bytes each here."""
_MAX_LOGGED = 200
_CLIENT = "dead-letters"
_NONE: array[int] = array("q")

_log = logging.getLogger(__name__)

Name = tuple[int, int]
"""Partition and offset of the record."""


class LetterBox(Protocol):
    """The dead-letter topic."""

    def known(self) -> Iterable[Name]:
        """Return whose letters are there. Raises Unavailable."""
        ...

    def put(self, letters: Sequence[DeadLetter]) -> list[bool]:
        """Return which of them are done with: acknowledged, or never to be written. Raises Unavailable; then none is."""
        ...


class KafkaLetterBox:
    """The dead-letter topic of `topic` on a broker; connected only while it is used, which is seldom.

    Attributes:
        num_dropped: letters that the broker refused even without their record's content.
    """

    def __init__(self, bootstrap_servers: str, topic: Topic, *, source: str, compression: Compression = "none") -> None:
        """`source` is the writer's, for the headers. Raises ConfigurationError when the compression's package is not installed."""
        compression_type(compression, KAFKA_PYTHON_PACKAGES)  # said now and not by the first letter
        self._bootstrap_servers, self._topic, self._source, self._compression = bootstrap_servers, topic, source, compression
        self.num_dropped = 0

    def known(self) -> Iterator[Name]:
        """Yield whose letters are there, in the order of the log; holds one fetch of it at a time.

        Raises:
            Unavailable: no broker, or no such topic.
        """
        consumer = assigned_consumer(self._bootstrap_servers, self._topic.dlq, start="beginning", client_id=_CLIENT)
        try:
            for record in records_to_end(consumer):
                name = _name_of(record)
                if name is not None:
                    yield name
        except KafkaError as error:
            raise Unavailable(f"reading {self._topic.dlq} failed: {error!r}") from error
        finally:
            consumer.close()

    def put(self, letters: Sequence[DeadLetter]) -> list[bool]:
        """Return which of them are done with: acknowledged, or refused even without their record's content.

        Raises:
            Unavailable: no broker.
        """
        done = [False] * len(letters)
        todo = dict(enumerate(letters))
        while todo:
            again: dict[int, DeadLetter] = {}
            records = [self._produced(each) for each in todo.values()]
            said = send_each(self._bootstrap_servers, records, client_id=_CLIENT, compression=self._compression)
            for (index, letter), error in zip(todo.items(), said, strict=True):
                less = shorter(letter, repr(error)) if isinstance(error, REFUSALS) else None
                if less is not None:
                    again[index] = less
                else:
                    done[index] = error is None or self._drop(letter, error)
            todo = again
        return done

    def _drop(self, letter: DeadLetter, error: Exception) -> bool:
        """Return whether a letter is never to be written, and say so."""
        if not isinstance(error, REFUSALS):
            _log.warning("%s does not acknowledge a letter: %r", self._topic.dlq, error)
            return False
        self.num_dropped += 1
        where = f"{letter.source_topic}[{letter.source_partition}]@{letter.source_offset}"
        _log.error(
            "%s gets no dead letter: the broker refuses it (%r); so far %d. %s", where, error, self.num_dropped, letter.detail[:_MAX_LOGGED]
        )
        return True

    def _produced(self, letter: DeadLetter) -> kafka_record.Record:
        return kafka_record.Record(
            self._topic.dlq, letter.key or None, letter.SerializeToString(), dead_letter_headers(letter, self._source)
        )


class KnownNames:
    """Names of letters, 8 bytes each, at most `most`; what does not fit any more is not kept."""

    def __init__(self, names: Iterable[Name], *, most: int) -> None:
        """Read the names."""
        self._most, self._count = most, 0
        self._offsets: dict[int, array[int]] = {}
        for partition, offset in names:
            if self.is_full:
                break
            # Sorted once, below: an insertion moves what follows.
            self._offsets.setdefault(partition, array("q")).append(offset)
            self._count += 1
        self._offsets = {partition: array("q", sorted(offsets)) for partition, offsets in self._offsets.items()}

    def __len__(self) -> int:
        return self._count

    @property
    def is_full(self) -> bool:
        """Whether no other is kept."""
        return self._count >= self._most

    def __contains__(self, name: Name) -> bool:
        offsets = self._offsets.get(name[0], _NONE)
        at = bisect_left(offsets, name[1])
        return at < len(offsets) and offsets[at] == name[1]

    def add(self, name: Name) -> None:
        """Keep one more, unless it is known or there is no room."""
        if name not in self and not self.is_full:
            insort(self._offsets.setdefault(name[0], array("q")), name[1])
            self._count += 1


class DeadLetterWriter:
    """Takes what a follower cannot use, in the follower's thread, and writes it in its own. Costs nothing until the first record."""

    def __init__(self, topic: Topic, box: LetterBox) -> None:
        """Nothing is connected. `topic` is the source."""
        self._topic, self._box = topic, box
        self._lock = threading.Lock()
        self._waiting: deque[DeadLetter] = deque()
        self._waiting_bytes = 0
        self._known: KnownNames | None = None
        self._has_work, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def set_aside(self, record: Record, cause: str) -> None:
        """Take a record; returns at once."""
        letter = dead_letter(
            topic=self._topic.name,
            partition=record.partition,
            offset=record.offset,
            reason=MALFORMED,
            detail=cause,
            key=record.key,
            value=record.value,
            headers=tuple(record.headers or ()),
        )
        with self._lock:
            if len(self._waiting) >= _MAX_WAITING or self._waiting_bytes + letter.ByteSize() > _MAX_WAITING_BYTES:
                name = self._topic.name
                _log.error("%s[%d]@%d gets its dead letter at the next start: too many wait", name, record.partition, record.offset)
                return
            self._waiting.append(letter)
            self._waiting_bytes += letter.ByteSize()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"dead-letters-{self._topic.name}", daemon=True)
                self._thread.start()
        self._has_work.set()

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits, as far as the time allows, and end. Blocks: call it off the event loop."""
        self._stop.set()
        self._has_work.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._has_work.wait()
            self._has_work.clear()
            if not self._write_all() or self._stop.is_set():
                return

    def _write_all(self) -> bool:
        """Write what waits; False: the process ends first."""
        while self._waiting:
            with self._lock:
                letters = list(self._waiting)
            try:
                if self._known is None:
                    self._known = KnownNames(self._box.known(), most=_MAX_KNOWN)
                is_all_done = self._write(letters, self._known)
            except Unavailable as error:
                _log.warning("%d dead letter(s) wait: %s", len(letters), error)
                is_all_done = False
            if not is_all_done:
                if self._stop.wait(_RETRY_S):
                    return False
                continue
            with self._lock:
                for letter in letters:
                    self._waiting.popleft()
                    self._waiting_bytes -= letter.ByteSize()
        return True

    def _write(self, letters: Sequence[DeadLetter], known: KnownNames) -> bool:
        """Write the letters that are not there, and return whether all are done with."""
        fresh = {_of(letter): letter for letter in letters if _of(letter) not in known}
        if known.is_full:
            # Which records beyond have a letter is not known: another one for each at every start would fill the topic without end.
            _log.error("%s holds %d letters and more: %d record(s) get none", self._topic.dlq, len(known), len(fresh))
            return True
        if not fresh:
            return True
        is_done = self._box.put(list(fresh.values()))
        for name, done in zip(fresh, is_done, strict=True):
            if done:
                known.add(name)
        return all(is_done)


def dead_letter_writer(bootstrap_servers: str, topic: Topic, *, source: str, compression: Compression = "none") -> DeadLetterWriter:
    """Return a writer to a broker. `source` is the process, e.g. "/tunemesh/recommender"."""
    return DeadLetterWriter(topic, KafkaLetterBox(bootstrap_servers, topic, source=source, compression=compression))


Refused = Callable[[Record, str], None]
"""Told of a record that a follower leaves out, and why; `DeadLetterWriter.set_aside` is one."""


def only_log(record: Record, cause: str) -> None:
    """Do nothing more than the follower, which logs what it leaves out: another process writes the topic's letters."""


def _name_of(record: Any) -> Name | None:
    try:
        letter = parse_value(record.value, record.headers, DeadLetter)
    except MalformedRecord:
        return None  # operators are told by `tunemesh dlq list`
    return _of(letter)


def _of(letter: DeadLetter) -> Name:
    return letter.source_partition, letter.source_offset
