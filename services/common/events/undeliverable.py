"""What becomes of a record that its topic will never take (larger than the topic allows, say): the one place that decides it.

Its dead letter takes its place, with topic, partition, cause, size and the record; where that is too large for the dead letters as well,
with an excerpt of the record, then without its content, and what is refused even so is dropped. Each is counted and told, and whoever
wrote the record goes on. An error that may pass (no broker, no leader, no acknowledgement in time) is no refusal and none of this room's
business: the caller repeats, or ends.

`in_place_of` and `shorter` are pure; `Undeliverable` sends, from a coroutine or from a thread. Every producer of the tree goes through
here, or stands in tests/contract/common/test_producers.py with the reason why not. Imports in both environments.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.content import header
from services.common.events.dead_letter_reasons import UNDELIVERABLE
from services.common.events.dead_letters import dead_letter, dead_letter_headers
from services.common.events.limits import MAX_RECORD_BYTES
from services.common.events.topics import ALL, BY_DLQ
from services.common.platform.errors import Overloaded
from services.common.platform.kafka_producer import REFUSALS
from services.common.platform.kafka_record import NotAcknowledged, Record, Refusal
from services.common.platform.telemetry import Telemetry

EXCERPT_BYTES = 1_000
"""What is kept of a record that has no room as a whole: its beginning, for people."""
_RESEND_S = 0.5
_DLQ_OF = {topic.name: topic.dlq for topic in ALL}

_log = logging.getLogger(__name__)


def in_place_of(refusal: Refusal) -> Record | None:
    """Return the dead letter of a refused record; of a refused dead letter a shorter one; None where nothing is left to try.

    A record that never was in its topic has no offset there: the letter has a number made from the value. Its partition is -1 where the
    key was to choose it. The letter holds the whole record, so that it can be put back once its topic takes it, or else an excerpt.
    """
    record = refusal.record
    source = header(record.headers, "ce_source") or "/tunemesh"
    if record.topic in BY_DLQ:
        less = shorter(DeadLetter.FromString(record.value), refusal.cause)
        return None if less is None else _record(record.topic, record.key, less, source)
    if record.topic not in _DLQ_OF:
        return None
    letter = dead_letter(
        topic=record.topic,
        partition=-1 if record.partition is None else record.partition,
        offset=int.from_bytes(hashlib.blake2b(record.value, digest_size=8).digest(), "little") >> 1,
        reason=UNDELIVERABLE,
        detail=f"{refusal.cause}; its value has {len(record.value)} bytes",
        key=record.key,
        value=record.value,
        headers=record.headers,
    )
    if len(record.value) > MAX_RECORD_BYTES:
        letter.value, letter.detail = record.value[:EXCERPT_BYTES], f"{refusal.cause} {_cut(len(record.value))}"
    return _record(_DLQ_OF[record.topic], record.key, letter, source)


def shorter(letter: DeadLetter, cause: str) -> DeadLetter | None:
    """Return a letter that the broker refused with an excerpt of its record, or without its content; None when it has none.

    Args:
        letter: stays as it is.
        cause: what the broker said.
    """
    if not letter.value and not letter.headers:
        return None
    less = DeadLetter()
    less.CopyFrom(letter)
    less.ClearField("headers")
    if len(letter.value) > EXCERPT_BYTES:
        less.value = letter.value[:EXCERPT_BYTES]
        less.detail = f"{letter.detail} {_cut(len(letter.value))} ({len(letter.headers)} headers left out: {cause})"
    else:
        less.ClearField("value")
        less.detail = f"{letter.detail} (left out here: {len(letter.value)} bytes and {len(letter.headers)} headers: {cause})"
    return less


def _cut(size: int) -> str:
    """As `dead_letter` says it, by which `tunemesh dlq redrive` knows that the record cannot be put back."""
    return f"(value cut from {size} to {EXCERPT_BYTES} bytes)"


def _record(topic: str, key: bytes | None, letter: DeadLetter, source: str) -> Record:
    return Record(topic, key, letter.SerializeToString(), dead_letter_headers(letter, source))


class Sender(Protocol):
    """What the room needs of `services.common.platform.kafka_async.AsyncProducer`."""

    async def send(self, records: Sequence[Record]) -> None:
        """Return once all are acknowledged; raise NotAcknowledged with the others and those refused, or Overloaded when it sent none."""
        ...


SendEach = Callable[[Sequence[Record]], Sequence[Exception | None]]
"""Sends records in their order and returns what became of each, as `services.common.platform.kafka_producer.send_each` does."""


class Undeliverable:
    """Sends, and puts letters in the place of what is refused. One per process.

    Attributes:
        counts: what was refused: records of which a letter is sent ("set_aside"), letters of which a shorter one is ("shortened"), and
            what is not even a letter ("dropped").
    """

    def __init__(self, telemetry: Telemetry) -> None:
        """Records the counter `kafka.undeliverable`, by topic and outcome."""
        self._counter = telemetry.meter.create_counter(
            "kafka.undeliverable", description="Records that Kafka refuses for good, by outcome."
        )
        self.counts: Counter[str] = Counter()

    def in_place_of(self, refused: Sequence[Refusal]) -> list[Record]:
        """Return what is to be sent in place of these; count and tell each."""
        letters = []
        for each in refused:
            letter = in_place_of(each)
            outcome = "dropped" if letter is None else "shortened" if each.record.topic in BY_DLQ else "set_aside"
            _log.error("the broker refuses a record for %s (%s): %s", each.record.topic, each.cause, outcome.replace("_", " "))
            self.counts[outcome] += 1
            self._counter.add(1, {"topic": each.record.topic, "outcome": outcome})
            if letter is not None:
                letters.append(letter)
        return letters

    async def send_once(self, sender: Sender, records: Sequence[Record]) -> None:
        """Return once every record is acknowledged, or its letter is.

        Raises:
            NotAcknowledged: there is no broker, or it did not answer in time. The records that the error names may be written or not, and
                those that were refused beside them have no letter.
        """
        left = list(records)
        while left:
            try:
                await sender.send(left)
            except Overloaded:
                await asyncio.sleep(_RESEND_S)
            except NotAcknowledged as error:
                if error.records:
                    raise
                left = self.in_place_of(error.refused)
            else:
                return

    async def send_until_acknowledged(self, sender: Sender, records: Sequence[Record]) -> None:
        """Return once every record is acknowledged, or its letter is, however long the broker is down: what waits behind them is only late.

        A record may be written twice: its readers know a repetition by its id.
        """
        left = list(records)
        is_first = True
        while left:
            try:
                await sender.send(left)
            except (NotAcknowledged, Overloaded) as error:
                if isinstance(error, NotAcknowledged):
                    left = error.records + self.in_place_of(error.refused)
                    if not error.records:
                        continue
                if is_first:
                    _log.warning("%d record(s) are sent again until Kafka acknowledges them: %s", len(left), error)
                    is_first = False
                await asyncio.sleep(_RESEND_S)
            else:
                return

    def send_from_thread(self, send: SendEach, records: Sequence[Record]) -> list[tuple[Record, Exception]]:
        """Send from a thread, and letters in place of what is refused; return what of all that is not acknowledged, and why."""
        left, lost = list(records), list[tuple[Record, Exception]]()
        while left:
            said = list(zip(left, send(left), strict=True))
            lost += [(record, error) for record, error in said if error is not None and not isinstance(error, REFUSALS)]
            left = self.in_place_of([Refusal(record, repr(error)) for record, error in said if isinstance(error, REFUSALS)])
        return lost
