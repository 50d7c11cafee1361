"""The loop of the updater: announcements, bases, deltas, reports. Runs in a thread of its own; it is the one writer of the tables.

It knows no Kafka and no file system: those are behind the Protocols.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tunemesh.events.v1.delta_pb2 import Delta

from services.common.platform.clock import wall_ms
from services.common.platform.errors import CorruptArtifact, NotFound, Unavailable
from services.common.platform.telemetry import Telemetry
from services.common.ranker.delta import DeltaBody
from services.common.ranker.delta_chunks import CompleteDelta, Reassembler
from services.common.ranker.tables.checks import TableDamaged
from services.common.ranker.tables.control_block import Applied
from services.common.ranker.tables.writer import ModelWriter, TableImage
from services.recommender.updater.core import BasePointer, Follower, HistoryLost, Outcome, Standing

_log = logging.getLogger(__name__)

# A base that cannot be read or written is tried again ever less often: each try may read and write as much as all tables hold.
_MAX_RETRY_FACTOR = 32


@dataclass(frozen=True, slots=True)
class DeltaRecord:
    """One record of ranker.deltas.v1.

    Attributes:
        offset: of the record.
        delta: None when the value cannot be parsed.
        traceparent: of the span that published it; "" when it was not traced.
    """

    offset: int
    delta: Delta | None
    traceparent: str


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """What a replica needs of a base artifact."""

    tables: Mapping[str, TableImage]
    dense: Mapping[str, NDArray[np.float32]]
    applied: Applied


class Feed(Protocol):
    """The broker, connected. Its methods raise Unavailable when it does not answer."""

    def lineage_id(self) -> str:
        """Return the lineage of the broker's history, "" when it has none yet. Reads the whole topic: do not call it often."""

    def new_bases(self) -> Sequence[BasePointer]:
        """Return the announcements since the last call; the first call begins with the oldest."""

    def seek(self, offset: int) -> None:
        """Read deltas on from this offset."""

    def deltas(self, timeout_ms: int) -> Sequence[DeltaRecord]:
        """Return the next records, waiting at most so long. Raises HistoryLost if the position is out of range."""

    def seems_shorter(self) -> bool:
        """Return whether the log ends before the position: perhaps the broker lost its data."""

    def report(self, standing: Standing) -> None:
        """Tell replicas.v1, without waiting."""

    def close(self) -> None:
        """Disconnect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Intervals in seconds, see UpdaterSettings."""

    poll_s: float
    report_s: float
    retry_s: float
    check_s: float = 30.0


class Updater:
    """Keeps the tables of this host up to date."""

    def __init__(
        self,
        follower: Follower,
        writer: ModelWriter,
        connect: Callable[[], Feed],
        load_base: Callable[[BasePointer], Base],
        *,
        timing: Timing,
        telemetry: Telemetry,
        on_ready: Callable[[], None],
    ) -> None:
        """Nothing happens before `run`.

        Args:
            follower: decides.
            writer: of the tables.
            connect: raises Unavailable.
            load_base: raises CorruptArtifact or NotFound when a base is of no use, Unavailable when it is worth another try.
            timing: intervals.
            telemetry: spans "delta.apply" and "base.load", counters `updater.*`.
            on_ready: called whenever the tables have become usable.
        """
        self._follower, self._writer = follower, writer
        self._connect, self._load_base = connect, load_base
        self._timing, self._telemetry, self._on_ready = timing, telemetry, on_ready
        self._reassembler = Reassembler()
        self._refused_bases: set[str] = set()
        self._report_at = 0.0
        self._checked_at = time.monotonic()
        self._met_other_lineage = False
        self._num_failures = 0
        meter = telemetry.meter
        self._deltas = meter.create_counter("updater.deltas", description="Deltas by outcome.")
        self._bases = meter.create_counter("updater.bases", description="Bases by outcome.")
        self._damages = meter.create_counter("updater.damages", description="Times that the tables were found damaged and built again.")
        self._rows = meter.create_counter("updater.rows", description="Rows and tombstones applied.")
        self._age = meter.create_histogram("updater.delta_age", unit="ms", description="From a delta's creation to its application.")

    def run(self, stop: threading.Event) -> None:
        """Follow until `stop` is set; whatever is being applied then is finished first."""
        while not stop.is_set():
            try:
                feed = self._connect()
                try:
                    self._follow(feed, stop)
                finally:
                    feed.close()
            except HistoryLost as error:
                _log.error("the deltas cannot be followed any further, waiting for a base: %s", error)
                self._follower.block(str(error))
                self._report_at = 0.0
            except Unavailable as error:
                pause_s = self._timing.retry_s * min(2 ** max(self._num_failures - 1, 0), _MAX_RETRY_FACTOR)
                _log.warning("trying again in %.1f s: %s", pause_s, error)
                self._check_tables()
                stop.wait(pause_s)

    def _follow(self, feed: Feed, stop: threading.Event) -> None:
        self._begin(feed)
        while not stop.is_set():
            self._check_tables()
            for pointer in feed.new_bases():
                self._announce(pointer)
            if time.monotonic() >= self._report_at:
                self._report_at = time.monotonic() + self._timing.report_s
                if not self._every_interval(feed):
                    return
            pointer_to_load = self._follower.base_to_load()
            if pointer_to_load is not None:
                self._load(pointer_to_load, feed)
            elif self._follower.is_following:
                self._take(feed.deltas(int(self._timing.poll_s * 1e3)))
            else:
                stop.wait(self._timing.poll_s)

    def _begin(self, feed: Feed) -> None:
        """Go on from the tables if they are of this broker's history."""
        lineage_id = feed.lineage_id()
        if lineage_id != self._follower.lineage_id:
            kept = self._writer.applied if lineage_id and self._writer.lineage_id == lineage_id else None
            self._follower.begin(lineage_id, kept)
            if kept is not None:
                _log.info("going on from the tables found: %s at %d.%d", kept.base_id, kept.epoch, kept.seq)
                self._on_ready()
        if self._follower.applied is not None:
            feed.seek(self._follower.applied.delta_offset)
        self._reassembler = Reassembler()

    def _every_interval(self, feed: Feed) -> bool:
        """Report, and look after the broker's history; return whether it is still the same one."""
        if self._met_other_lineage or not self._follower.is_following or feed.seems_shorter():
            self._met_other_lineage = False
            if feed.lineage_id() != self._follower.lineage_id:
                _log.warning("the broker's lineage changed: waiting for a base of the new history")
                return False
        feed.report(self._follower.standing)
        return True

    def _check_tables(self) -> None:
        """Look over so much of the tables that all of it comes round every `check_s`."""
        now = time.monotonic()
        share, self._checked_at = (now - self._checked_at) / self._timing.check_s, now
        try:
            self._writer.check(share)
        except TableDamaged as error:
            self._rebuild(error)

    def _rebuild(self, damage: TableDamaged) -> None:
        """Readers have been turned away from the tables already; the next base brings them back."""
        _log.error("the tables are damaged and will be built again from a base: %s", damage)
        self._damages.add(1)
        self._follower.lost()

    def _announce(self, pointer: BasePointer) -> None:
        self._met_other_lineage |= pointer.lineage_id != self._follower.lineage_id
        reason = self._follower.announce(pointer)
        if reason:
            self._refuse_base(pointer.base_id, reason)

    def _refuse_base(self, base_id: str, reason: str) -> None:
        if base_id not in self._refused_bases:
            self._refused_bases.add(base_id)
            self._bases.add(1, {"outcome": "refused"})
            _log.error("base refused: %s", reason)

    def _load(self, pointer: BasePointer, feed: Feed) -> None:
        started = time.monotonic()
        with self._telemetry.span("base.load", attributes={"base_id": pointer.base_id}):
            try:
                base = self._load_base(pointer)
                self._build(base, pointer.lineage_id)
            except (CorruptArtifact, NotFound) as error:
                self._follower.discard(pointer.base_id, str(error))
                self._refuse_base(pointer.base_id, str(error))
                return
            except Unavailable:
                self._num_failures += 1
                raise
        self._num_failures = 0
        self._follower.loaded(pointer, base.applied)
        self._reassembler = Reassembler()
        feed.seek(base.applied.delta_offset)
        self._bases.add(1, {"outcome": "loaded"})
        at, elapsed_s = base.applied, time.monotonic() - started
        _log.info("base %s loaded in %.1f s: %s rows, at %d.%d", at.base_id, elapsed_s, self._writer.num_rows(), at.epoch, at.seq)
        self._on_ready()

    def _build(self, base: Base, lineage_id: str) -> None:
        """Make the tables of a base.

        Raises:
            CorruptArtifact: no tables can be made of it.
            Unavailable: they cannot be written; those that there are stay as they are.
        """
        try:
            self._writer.build(base.tables, base.dense, base.applied, lineage_id=lineage_id)
        except OSError as error:
            raise Unavailable(f"the tables of base {base.applied.base_id} cannot be written, the present ones stay: {error}") from error
        except ValueError as error:
            raise CorruptArtifact(f"no tables can be made of base {base.applied.base_id}: {error}") from error

    def _take(self, records: Sequence[DeltaRecord]) -> None:
        for record in records:
            if not self._follower.is_following:
                return
            if record.delta is None:
                self._refuse_delta(f"record at offset {record.offset}", "it cannot be parsed")
                continue
            try:
                complete = self._reassembler.add(record.delta)
            except CorruptArtifact as error:
                # If it was of this epoch, the next delta shows the gap.
                self._refuse_delta(f"record at offset {record.offset}", str(error))
                continue
            if complete is not None:
                self._take_complete(complete, record)

    def _take_complete(self, complete: CompleteDelta, record: DeltaRecord) -> None:
        header = complete.header
        who = f"delta {header.epoch}.{header.seq}"
        self._met_other_lineage |= header.lineage_id != self._follower.lineage_id
        decision = self._follower.judge(header)
        if decision.outcome is Outcome.APPLY:
            try:
                self._apply(complete, record)
            except TableDamaged as error:
                self._rebuild(error)
                return
            except CorruptArtifact as error:
                self._refuse_delta(who, str(error))
                return
        elif decision.outcome is Outcome.REFUSE:
            self._refuse_delta(who, decision.reason)
            return
        elif decision.outcome is Outcome.BLOCK:
            _log.error("%s cannot be applied, waiting for a base: %s", who, decision.reason)
            self._follower.block(decision.reason, decision.need)
            # The trainer hears at once that a base is needed.
            self._report_at = 0.0
        self._deltas.add(1, {"outcome": decision.outcome.value})

    def _apply(self, complete: CompleteDelta, record: DeltaRecord) -> None:
        header = complete.header
        attributes = {"epoch": header.epoch, "seq": header.seq, "watermark_ms": header.watermark_ms}
        with self._telemetry.span("delta.apply", links=[record.traceparent], attributes=attributes):
            body = complete.decode()
            applied = Applied(
                epoch=header.epoch,
                seq=header.seq,
                watermark_ms=header.watermark_ms,
                base_id=header.base_id,
                delta_offset=record.offset + 1,
            )
            try:
                self._writer.apply(body, applied)
            except OSError as error:
                # The tables had to grow and could not; nothing was changed, and the delta is read again.
                self._num_failures += 1
                raise Unavailable(f"there is no room for delta {header.epoch}.{header.seq}: {error}") from error
        self._num_failures = 0
        self._follower.advanced(applied)
        self._rows.add(_num_changed(body))
        self._age.record(max(0, wall_ms() - header.created_at_ms))

    def _refuse_delta(self, who: str, reason: str) -> None:
        self._deltas.add(1, {"outcome": Outcome.REFUSE.value})
        _log.error("%s refused: %s", who, reason)


def _num_changed(body: DeltaBody) -> int:
    return sum(int(table.ids.size + table.tombstones.size) for table in body.tables.values())
