"""Dead letters of a topic that a process follows by itself, outside any consumer group (catalog.v1, control.v1, the deltas …).

Every replica reads such a topic whole at each of its starts and meets the same unusable records again. So before the first letter the
dead-letter topic is read once, and a record that has its letter gets no other. Replicas that meet a record at the same moment may write one
each: a letter's name (topic, partition, offset, reason) is the same. Imports in both environments.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from kafka.errors import KafkaError
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.content import MalformedRecord
from services.common.events.dead_letter_reasons import MALFORMED
from services.common.events.dead_letters import dead_letter, dead_letter_headers
from services.common.events.envelope import parse_value
from services.common.events.topics import Topic
from services.common.platform.errors import Unavailable
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.common.platform.kafka_batches import KAFKA_PYTHON_PACKAGES
from services.common.platform.kafka_compression import Compression, compression_type
from services.common.platform.kafka_producer import durable_producer
from services.common.platform.topic_follower import Record

_RETRY_S = 2.0
_ACKNOWLEDGED_WITHIN_S = 10.0
_MAX_WAITING = 1_000
_MAX_WAITING_BYTES = 16 * 1024 * 1024
"""While the broker is down; what is above is logged only, and gets its letter at the next start."""

_log = logging.getLogger(__name__)

Name = tuple[int, int]
"""Partition and offset of the record."""


class LetterBox(Protocol):
    """The dead-letter topic."""

    def known(self) -> Iterable[Name]:
        """Return whose letters are there. Raises Unavailable."""
        ...

    def put(self, letters: Iterable[DeadLetter]) -> None:
        """Return once all are acknowledged. Raises Unavailable; then some may be written."""
        ...


class KafkaLetterBox:
    """The dead-letter topic of `topic` on a broker; connected only while it is used, which is seldom."""

    def __init__(self, bootstrap_servers: str, topic: Topic, *, source: str, compression: Compression = "none") -> None:
        """`source` is the writer's, for the headers. Raises ConfigurationError when the compression's package is not installed."""
        compression_type(compression, KAFKA_PYTHON_PACKAGES)  # said now and not by the first letter
        self._bootstrap_servers, self._topic, self._source, self._compression = bootstrap_servers, topic, source, compression

    def known(self) -> Iterable[Name]:
        """Return whose letters are there.

        Raises:
            Unavailable: no broker, or no such topic.
        """
        consumer = assigned_consumer(self._bootstrap_servers, self._topic.dlq, start="beginning", client_id="dead-letters")
        try:
            records = drain_to_end(consumer)
        except KafkaError as error:
            raise Unavailable(f"reading {self._topic.dlq} failed: {error!r}") from error
        finally:
            consumer.close()
        return [name for record in records if (name := _name_of(record)) is not None]

    def put(self, letters: Iterable[DeadLetter]) -> None:
        """Return once all are acknowledged.

        Raises:
            Unavailable: one was not; some may be written.
        """
        producer = durable_producer(self._bootstrap_servers, client_id="dead-letters", compression=self._compression)
        try:
            sent = [
                producer.send(self._topic.dlq, letter.SerializeToString(), letter.key or None, dead_letter_headers(letter, self._source))
                for letter in letters
            ]
            for future in sent:
                future.get(_ACKNOWLEDGED_WITHIN_S)
        except KafkaError as error:
            raise Unavailable(f"writing {self._topic.dlq} failed: {error!r}") from error
        finally:
            producer.close(timeout=1)


class DeadLetterWriter:
    """Takes what a follower cannot use, in the follower's thread, and writes it in its own. Costs nothing until the first record."""

    def __init__(self, topic: Topic, box: LetterBox) -> None:
        """Nothing is connected. `topic` is the source."""
        self._topic, self._box = topic, box
        self._lock = threading.Lock()
        self._waiting: deque[DeadLetter] = deque()
        self._waiting_bytes = 0
        self._known: set[Name] | None = None
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
                    self._known = set(self._box.known())
                fresh = {_of(letter): letter for letter in letters if _of(letter) not in self._known}
                if fresh:
                    self._box.put(fresh.values())
            except Unavailable as error:
                _log.warning("%d dead letter(s) wait: %s", len(letters), error)
                if self._stop.wait(_RETRY_S):
                    return False
                continue
            self._known.update(fresh)
            with self._lock:
                for letter in letters:
                    self._waiting.popleft()
                    self._waiting_bytes -= letter.ByteSize()
        return True


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
