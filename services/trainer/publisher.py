"""What replicas are told: deltas of absolute rows in one epoch, one at a time, cleared only after the broker's acknowledgement.

Pure but for the log that it is given. A delta that the broker did not acknowledge is sent again byte for byte, so that whatever part of it
had been written, replicas end with the same rows. It knows neither Kafka nor how anything is learned.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tunemesh.events.v1.delta_pb2 import Delta, DeltaHeader, RowDtype

from services.common.platform.errors import Unavailable
from services.common.ranker.delta import DeltaBody, TableDelta, encode_body
from services.common.ranker.delta_chunks import chunk
from services.trainer.merge import Position
from services.trainer.publish_gate import Float32s, PublishGateLimits, refusal
from services.trainer.trainer_table import TrainerTable

_log = logging.getLogger(__name__)

Int64s = NDArray[np.int64]
NONE_YET = -1


class PendingAppend(Protocol):
    """Records on their way to the broker."""

    def next_offset(self) -> int | None:
        """Return the offset behind the last record once all are acknowledged, None while they are not.

        Raises:
            Unavailable: the broker did not acknowledge in time; some of the records may have been written.
        """

    def wait(self, timeout_ms: int) -> None:
        """Block until `next_offset` has an answer, or for at most timeout_ms."""


class DeltaLog(Protocol):
    """The end of ranker.deltas.v1, one shard."""

    def append(self, chunks: Sequence[Delta], traceparent: str) -> PendingAppend:
        """Start writing the chunks in order."""


class Published(Protocol):
    """The part of a learner that replicas see."""

    @property
    def tables(self) -> Mapping[str, TrainerTable]:
        """Embedding tables by name."""

    @property
    def steps(self) -> int:
        """Micro-batches learned so far: the dense weights change with it."""

    def dense_state(self) -> dict[str, Float32s]:
        """Return the dense weights by parameter name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What every header of one epoch says."""

    model: str
    schema_hash: str
    lineage_id: str
    epoch: int
    shard: int = 0


@dataclass(slots=True, kw_only=True)
class _InFlight:
    seq: int
    chunks: list[Delta]
    traceparent: str
    pending: PendingAppend
    tokens: dict[str, int]
    steps: int
    position: Position
    num_failures: int = 0


@dataclass(slots=True)
class DeltaPublisher:
    """Publishes the deltas of one epoch.

    Attributes:
        base_id: what headers name as the base.
        seq: of the last acknowledged delta; -1 before the first.
        next_offset: behind that delta, in the shard's partition.
        published_position: what the replicas' weights contain.
        refusal: why the publish gate refused the last delta; empty while deltas pass.
        quality_refusal: why the gate refuses all that comes (services/trainer/quality_gate.py); the epoch sets it.
        continues: epoch and seq of the last delta of an older epoch that the weights contain; the epoch's first delta says so.
    """

    log: DeltaLog
    identity: Identity
    dtype: RowDtype
    limits: PublishGateLimits
    base_id: str
    next_offset: int
    published_position: Position
    seq: int = NONE_YET
    refusal: str = ""
    quality_refusal: str = ""
    continues: tuple[int, int] = (0, 0)
    _in_flight: _InFlight | None = None
    _published_steps: int = NONE_YET
    # Of what was learned since the last delta that carried weights.
    _gradient_square: float = 0.0
    _samples_learned: int = 0
    # Ids that an earlier epoch published after the cut that this one continues from, still to be published as rows or tombstones.
    _to_republish: dict[str, Int64s] = field(default_factory=dict)

    @property
    def is_idle(self) -> bool:
        """True when nothing waits for the broker."""
        return self._in_flight is None

    def is_behind(self, steps: int, position: Position, *, newest_accepted_ms: int) -> bool:
        """Return whether replicas would learn something from a delta now: weights, or that the newest feedback is in those they have.

        Args:
            steps: of the learner.
            position: what it contains.
            newest_accepted_ms: when the newest feedback that it learned was accepted.
        """
        flight = self._in_flight
        last_steps, last = (self._published_steps, self.published_position) if flight is None else (flight.steps, flight.position)
        return steps != last_steps or last.watermark_ms < newest_accepted_ms <= position.watermark_ms

    def within_seq(self, steps: int) -> int:
        """Return the seq of the delta that holds, or will hold, weights of so many steps: they are in no earlier one."""
        flight = self._in_flight
        last_seq, last_steps = (self.seq, self._published_steps) if flight is None else (flight.seq, flight.steps)
        return last_seq if steps == last_steps else last_seq + 1

    def republish(self, ids_by_table: Mapping[str, Int64s]) -> None:
        """Let the next delta carry these ids as they are now: with their row, or as a tombstone when they have none."""
        self._to_republish = dict(ids_by_table)

    def note_step(self, *, num_samples: int, gradient_norm: float) -> None:
        """Let the next delta's header count this micro-batch: samples without a gradient are an alarm (streams/quality)."""
        self._samples_learned += num_samples
        self._gradient_square += gradient_norm * gradient_norm

    def fence(self, position: Position, *, now_ms: int) -> None:
        """Start publishing an empty delta: replicas that have it refuse older epochs.

        Raises:
            ValueError: a delta is still in flight (`is_idle`).
        """
        self._send(DeltaBody(), {}, self._published_steps, position, now_ms, "")

    def publish(self, learner: Published, position: Position, *, now_ms: int, traceparent: str) -> None:
        """Start publishing all that changed; a heartbeat when nothing did, or when the publish gate refuses.

        Args:
            learner: what to publish; the touched ids of its tables are acknowledged when the broker has the delta.
            position: what the learner contains.
            now_ms: Unix milliseconds.
            traceparent: of the span that this happens in.
        Raises:
            ValueError: a delta is still in flight (`is_idle`).
        """
        body, tokens = self._body(learner)
        rows = {name: delta.rows for name, delta in body.tables.items()}
        self._note_gate(refusal(rows, body.dense or {}, self.limits) or self.quality_refusal)
        if self.refusal:
            # Replicas hear that the trainer lives, but no new watermark: what it stands for was not sent.
            self._send(DeltaBody(), {}, self._published_steps, self.published_position, now_ms, traceparent)
        else:
            self._send(body, tokens, learner.steps, position, now_ms, traceparent)
            # Sent again byte for byte if need be; what a refused delta would have carried waits for the next one.
            self._gradient_square, self._samples_learned = 0.0, 0

    def _send(self, body: DeltaBody, tokens: dict[str, int], steps: int, position: Position, now_ms: int, traceparent: str) -> None:
        if self._in_flight is not None:
            raise ValueError("a delta is still in flight")
        is_empty = body.dense is None and not any(table.ids.size or table.tombstones.size for table in body.tables.values())
        header = self._header(position, now_ms, heartbeat=is_empty)
        if not is_empty:
            header.gradient_norm, header.samples_trained = math.sqrt(self._gradient_square), self._samples_learned
        chunks = chunk(header, b"" if is_empty else encode_body(body, self.dtype))
        self._in_flight = _InFlight(
            seq=self.seq + 1,
            chunks=chunks,
            traceparent=traceparent,
            pending=self.log.append(chunks, traceparent),
            tokens=tokens,
            steps=steps,
            position=position,
        )

    def poll(self, learner: Published) -> bool:
        """Look whether the broker has acknowledged; return true when nothing is in flight any more. Sends again what it refused."""
        flight = self._in_flight
        if flight is None:
            return True
        try:
            next_offset = flight.pending.next_offset()
        except Unavailable as error:
            if flight.num_failures == 0:
                _log.warning("delta %d.%d was not acknowledged, sending it until it is: %s", self.identity.epoch, flight.seq, error)
            flight.num_failures += 1
            flight.pending = self.log.append(flight.chunks, flight.traceparent)
            return False
        if next_offset is None:
            return False
        if flight.num_failures:
            _log.warning("delta %d.%d is acknowledged, after %d attempts that failed", self.identity.epoch, flight.seq, flight.num_failures)
        self.seq, self.next_offset = flight.seq, next_offset
        self._published_steps, self.published_position = flight.steps, flight.position
        for name, token in flight.tokens.items():
            learner.tables[name].ack_touched(token)
        if flight.tokens:
            self._to_republish = {}
        self._in_flight = None
        return True

    def flush(self, learner: Published, timeout_ms: int) -> None:
        """Wait until nothing is in flight.

        Raises:
            Unavailable: the broker did not acknowledge in time. The delta stays in flight.
        """
        if self._in_flight is not None:
            self._in_flight.pending.wait(timeout_ms)
        if not self.poll(learner):
            raise Unavailable(f"the broker did not acknowledge delta {self.identity.epoch}.{self.seq + 1} within {timeout_ms} ms")

    def _body(self, learner: Published) -> tuple[DeltaBody, dict[str, int]]:
        tables, tokens = {}, {}
        for name, table in learner.tables.items():
            again = self._to_republish.get(name, np.empty(0, np.int64))
            table.mark_touched(again)
            touched = table.take_touched()
            gone = np.union1d(touched.tombstones, np.setdiff1d(again, touched.ids))
            tables[name] = TableDelta(touched.ids, touched.rows, gone)
            tokens[name] = touched.token
        dense = learner.dense_state() if learner.steps != self._published_steps else None
        return DeltaBody(tables, dense), tokens

    def _header(self, position: Position, now_ms: int, *, heartbeat: bool) -> DeltaHeader:
        identity = self.identity
        return DeltaHeader(
            model=identity.model,
            schema_hash=identity.schema_hash,
            lineage_id=identity.lineage_id,
            epoch=identity.epoch,
            shard=identity.shard,
            seq=self.seq + 1,
            prev_seq=self.seq,
            base_id=self.base_id,
            source_offsets=position.offsets,
            watermark_ms=position.watermark_ms,
            dtype=self.dtype,
            heartbeat=heartbeat,
            created_at_ms=now_ms,
            continues_epoch=self.continues[0] if self.seq == NONE_YET else 0,
            continues_seq=self.continues[1] if self.seq == NONE_YET else 0,
        )

    def _note_gate(self, reason: str) -> None:
        if reason and reason != self.refusal:
            _log.error("the publish gate refuses delta %d.%d, replicas keep what they have: %s", self.identity.epoch, self.seq + 1, reason)
        elif self.refusal and not reason:
            _log.warning("the publish gate lets deltas pass again; before: %s", self.refusal)
        self.refusal = reason
