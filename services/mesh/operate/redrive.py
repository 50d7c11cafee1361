"""Puts records of a dead-letter topic back into their source topic, each letter once. letter_book.py has the rules.

A record keeps its key, value and headers, and gets the header `tunemesh-redriven` with its letter's name. A record that the broker refuses
(larger than its topic allows, say) is reported, and the others are put back.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kafka.errors import KafkaError
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.dead_letter_reasons import REDRIVE_CLAIMED, REDRIVEN
from services.common.events.dead_letters import REDRIVEN_HEADER, dead_letter_headers
from services.common.events.envelope import MalformedRecord, header, parse_value
from services.common.events.topics import Topic
from services.common.platform.clock import wall_ms
from services.common.platform.errors import Unavailable
from services.common.platform.kafka_compression import Compression
from services.common.platform.kafka_producer import REFUSALS, send_each
from services.common.platform.kafka_record import Record
from services.mesh.operate.letter_book import Letter, LetterBook, note, unresolved, won
from services.mesh.operate.log_scan import LogScanner

_BATCH = 500
# A run that has not noted a letter this long after its claim is over: sending a batch takes seconds.
_CLAIM_TTL_MS = 60_000
_SOURCE = "/tunemesh/operate"

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Redriven:
    """What a run did with letters.

    Attributes:
        sent: put back.
        found_sent: found put back by an earlier run.
        refused: not taken by the broker, and what it said.
        why_not: how many can never be put back, by the reason.
        left_to_others: left to a run that is at it.
        not_taken: above the limit.
    """

    sent: list[Letter] = field(default_factory=list)
    found_sent: list[Letter] = field(default_factory=list)
    refused: list[tuple[Letter, str]] = field(default_factory=list)
    why_not: Counter[str] = field(default_factory=Counter)
    left_to_others: int = 0
    not_taken: int = 0


def read_book(scanner: LogScanner, topic: Topic) -> LetterBook:
    """Read a whole dead-letter topic.

    Raises:
        Unavailable: no broker, no such topic, or more records than the scanner may read.
    """
    book = LetterBook()

    def add(record: Any) -> None:
        try:
            book.add(record.offset, parse_value(record.value, record.headers, DeadLetter))
        except MalformedRecord as error:
            _log.warning("%s at offset %d is no dead letter and is left out: %s", topic.dlq, record.offset, error)

    if scanner.scan(topic.dlq, add).is_cut:
        raise Unavailable(f"{topic.dlq} holds more records than may be read at once: raise TUNEMESH_OPERATE_SCAN_RECORDS")
    return book


class Redrive:
    """One run over one dead-letter topic."""

    def __init__(self, bootstrap_servers: str, scanner: LogScanner, topic: Topic, compression: Compression = "none") -> None:
        """`topic` is the source topic, whose dead letters are put back."""
        self._bootstrap, self._scanner, self._topic, self._compression = bootstrap_servers, scanner, topic, compression
        self._run_id = uuid.uuid4().hex
        self._result = Redriven()

    def run(self, *, reason: str = "", limit: int, again: bool = False) -> Redriven:
        """Put back at most `limit` letters, oldest first; see LetterBook.pending for the others.

        Raises:
            Unavailable: no broker, or it did not acknowledge. Running again continues, and puts nothing back twice.
        """
        try:
            book = read_book(self._scanner, self._topic)
            self._result.why_not = Counter(each.why_not for each in book.not_redrivable(reason=reason))
            free = self._not_sent_yet(book.pending(reason=reason, again=again))
            self._result.not_taken = max(0, len(free) - limit)
            for start in range(0, min(limit, len(free)), _BATCH):
                self._put_back(free[start : min(start + _BATCH, limit)])
        except KafkaError as error:
            raise Unavailable(f"Kafka at {self._bootstrap} failed: {error!r}; run again to continue") from error
        return self._result

    def _not_sent_yet(self, pending: list[Letter]) -> list[Letter]:
        """Leave out what another run is at, and what an earlier one has sent without living to note it."""
        fresh, stale = unresolved(pending, now_ms=wall_ms(), claim_ttl_ms=_CLAIM_TTL_MS)
        self._result.left_to_others = len(fresh)
        sent = self._names_in_source(stale)
        self._result.found_sent = [letter for letter in stale if str(letter.name) in sent]
        self._note(self._result.found_sent, REDRIVEN)
        excluded = {letter.name for letter in [*fresh, *self._result.found_sent]}
        return [letter for letter in pending if letter.name not in excluded]

    def _names_in_source(self, stale: Sequence[Letter]) -> set[str]:
        if not stale:
            return set()
        since_ms = min(claim.claimed_at_ms for letter in stale for claim in letter.claims)
        scan = self._scanner.scan(self._topic.name, lambda record: header(record.headers, REDRIVEN_HEADER), since_ms=since_ms - 1_000)
        if scan.is_cut:
            raise Unavailable(
                f"whether {len(stale)} letters of an interrupted run were sent cannot be said without reading more of {self._topic.name}: "
                "raise TUNEMESH_OPERATE_SCAN_RECORDS"
            )
        return set(scan.found)

    def _put_back(self, letters: Sequence[Letter]) -> None:
        claimed_ms = wall_ms()
        self._note(letters, REDRIVE_CLAIMED)
        names = {letter.name for letter in letters}
        book = read_book(self._scanner, self._topic)
        mine = won([letter for name, letter in book.letters.items() if name in names], self._run_id, since_ms=claimed_ms - _CLAIM_TTL_MS)
        self._result.left_to_others += len(letters) - len(mine)
        said = self._send([Record(self._topic.name, letter.body.key or None, letter.body.value, _headers(letter)) for letter in mine])
        # What is there is noted whatever became of the others.
        sent = [letter for letter, error in zip(mine, said, strict=True) if error is None]
        self._note(sent, REDRIVEN)
        self._result.sent += sent
        for letter, error in zip(mine, said, strict=True):
            if isinstance(error, REFUSALS):
                self._result.refused.append((letter, repr(error)))
            elif error is not None:
                raise error

    def _note(self, letters: Sequence[Letter], kind: str) -> None:
        bodies = [note(letter, kind, self._run_id, wall_ms()) for letter in letters]
        records = [
            Record(self._topic.dlq, letter.body.key or None, body.SerializeToString(), dead_letter_headers(body, _SOURCE))
            for letter, body in zip(letters, bodies, strict=True)
        ]
        for error in self._send(records):
            if error is not None:
                raise error

    def _send(self, records: Sequence[Record]) -> list[KafkaError | None]:
        return send_each(self._bootstrap, records, client_id="tunemesh-operate", compression=self._compression) if records else []


def _headers(letter: Letter) -> list[tuple[str, bytes]]:
    kept = [(name, value) for name, value in letter.body.headers.items() if name != REDRIVEN_HEADER]
    return [*kept, (REDRIVEN_HEADER, str(letter.name).encode())]
