"""The updater's side of Kafka: assigned partitions, own offsets, and an offset out of range is an error."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from kafka import TopicPartition
from kafka.errors import CorruptRecordError, KafkaError, OffsetOutOfRangeError, UnsupportedCodecError
from tunemesh.events.v1 import delta_pb2
from tunemesh.events.v1.control_pb2 import ControlRecord
from tunemesh.events.v1.delta_pb2 import Delta, ReplicaStatus
from typing_extensions import override

from services.common.events.dead_letter_writer import dead_letter_writer
from services.common.events.envelope import MalformedRecord, headers_for, parse_value
from services.common.events.topics import CONTROL, RANKER_BASES, RANKER_DELTAS, REPLICAS
from services.common.platform.clock import wall_ms
from services.common.platform.control import ControlState
from services.common.platform.errors import CorruptArtifact, Unavailable
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.common.platform.kafka_compression import Compression
from services.common.platform.kafka_producer import RenewedProducer
from services.common.platform.traceparent import traceparent_of
from services.common.ranker.delta_chunks import parse_chunk
from services.recommender.updater.core import HistoryLost, Standing
from services.recommender.updater.worker import DeltaRecord, Feed

_log = logging.getLogger(__name__)

SOURCE = "/tunemesh/updater"
_CLIENT_ID = "tunemesh-updater"
# What the client raises at a batch that it cannot read; it stays before that batch. Only a base that continues behind it helps.
_UNREADABLE = (CorruptRecordError, UnsupportedCodecError)
_CONNECT_TIMEOUT_MS = 5_000
# A look at the announcements costs a millisecond, and a base is rare and may be late.
_BASES_PAUSE_S = 0.25


class KafkaFeed(Feed):
    """Meets `worker.Feed`: one shard's partition of the deltas, and the announcements."""

    def __init__(
        self, bootstrap_servers: str, *, model: str, schema_hash: str, replica_id: str, shard: int = 0, compression: Compression = "none"
    ) -> None:
        """Connect.

        Raises:
            Unavailable: no broker, or a topic is missing.
        """
        self._bootstrap_servers = bootstrap_servers
        self._model, self._schema_hash, self._replica_id = model, schema_hash, replica_id
        self._partition = TopicPartition(RANKER_DELTAS.name, shard)
        self._position = 0
        self._has_read_bases, self._look_at_bases = False, 0.0
        # What is connected when the next one fails is closed again: it has a thread, and this is tried once a second.
        with ExitStack() as opened:
            # A delta is answered at once: it is what requests wait for, and there are a few a second at most.
            self._deltas = self._consumer(RANKER_DELTAS.name, shard, fetch_wait_ms=100, fetch_min_bytes=1)
            opened.callback(self._deltas.close)
            self._bases = self._consumer(RANKER_BASES.name, 0, fetch_wait_ms=1_000)
            opened.callback(self._bases.close)
            self._producer = RenewedProducer(bootstrap_servers, client_id=_CLIENT_ID, compression=compression)
            opened.callback(self._producer.close)
            self._letters = {
                topic: dead_letter_writer(bootstrap_servers, topic, source=SOURCE, compression=compression)
                for topic in (RANKER_DELTAS, RANKER_BASES)
            }
            opened.pop_all()

    def _consumer(self, topic: str, partition: int, *, fetch_wait_ms: int, **overrides: int) -> Any:
        return assigned_consumer(
            self._bootstrap_servers,
            topic,
            [partition],
            start="beginning",
            client_id=_CLIENT_ID,
            bootstrap_timeout_ms=_CONNECT_TIMEOUT_MS,
            fetch_max_wait_ms=fetch_wait_ms,
            **overrides,
        )

    @override
    def lineage_id(self) -> str:
        state = ControlState()
        consumer = self._consumer(CONTROL.name, 0, fetch_wait_ms=100)
        try:
            with _translated(CONTROL.name):
                records = drain_to_end(consumer, _CONNECT_TIMEOUT_MS)
        finally:
            consumer.close()
        for record in records:
            if record.value is not None:
                try:
                    state.apply(parse_value(record.value, record.headers, ControlRecord))
                except MalformedRecord as error:
                    _log.error("%s: the record at offset %d is left out: %s", CONTROL.name, record.offset, error)
        return state.lineage_id

    @override
    def new_bases(self) -> list[delta_pb2.BasePointer]:
        """Return the pointers written since the last call, at first all of them. What cannot be read is logged and left out."""
        with _translated(RANKER_BASES.name):
            records = self._poll_bases()
        pointers = []
        for record in records:
            try:
                pointers.append(parse_value(record.value, record.headers, delta_pb2.BasePointer))
            except MalformedRecord as error:
                _log.error("%s: the record at offset %d is left out: %s", RANKER_BASES.name, record.offset, error)
                self._letters[RANKER_BASES].set_aside(record, str(error))
        return pointers

    def _poll_bases(self) -> list[Any]:
        try:
            if self._has_read_bases:
                if time.monotonic() < self._look_at_bases:
                    return []
                self._look_at_bases = time.monotonic() + _BASES_PAUSE_S
                return [record for batch in self._bases.poll(timeout_ms=0).values() for record in batch]
            records = drain_to_end(self._bases)
        except _UNREADABLE as error:
            partition = TopicPartition(RANKER_BASES.name, 0)
            position = self._bases.position(partition, timeout_ms=_CONNECT_TIMEOUT_MS)
            _log.error("%s: the batch at offset %d is left out: %r", RANKER_BASES.name, position, error)
            self._bases.seek(partition, position + 1)
            return []
        self._has_read_bases = True
        return records

    @override
    def seek(self, offset: int) -> None:
        self._deltas.seek(self._partition, offset)
        self._position = offset

    @override
    def deltas(self, timeout_ms: int) -> Sequence[DeltaRecord]:
        try:
            records = self._deltas.poll(timeout_ms=timeout_ms).get(self._partition, [])
        except OffsetOutOfRangeError as error:
            raise HistoryLost(f"{RANKER_DELTAS.name}: {error}") from error
        except _UNREADABLE as error:
            raise HistoryLost(f"{RANKER_DELTAS.name}: what is stored at offset {self._position} cannot be read: {error!r}") from error
        except KafkaError as error:
            raise Unavailable(f"{RANKER_DELTAS.name}: {error!r}") from error
        if records:
            self._position = records[-1].offset + 1
        return [DeltaRecord(record.offset, self._parsed(record), traceparent_of(record.headers)) for record in records]

    @override
    def seems_shorter(self) -> bool:
        """Return whether the log ends before what was read.

        The embedded broker also says so by mistake: after a batch of several records its end is that of the first one.
        """
        with _translated(RANKER_DELTAS.name):
            end = self._deltas.end_offsets([self._partition], timeout_ms=_CONNECT_TIMEOUT_MS)[self._partition]
        return bool(end < self._position)

    @override
    def report(self, standing: Standing) -> None:
        applied = standing.applied
        status = ReplicaStatus(
            replica_id=self._replica_id,
            model=self._model,
            schema_hash=self._schema_hash,
            reported_at_ms=wall_ms(),
            blocked=standing.blocked,
            newest_base_id=standing.newest_base_id,
        )
        if applied is not None:
            status.base_id, status.epoch, status.seq = applied.base_id, applied.epoch, applied.seq
            status.watermark_ms = applied.watermark_ms
            status.delta_offsets.append(applied.delta_offset)
        headers = headers_for("tunemesh.events.v1.ReplicaStatus", SOURCE)
        with _translated(REPLICAS.name):
            sent = self._producer.send(REPLICAS.name, status.SerializeToString(), self._replica_id.encode(), headers)
        # The next report makes up for this one.
        sent.add_errback(lambda error: _log.warning("a report to %s was lost: %r", REPLICAS.name, error))

    @override
    def close(self) -> None:
        self._deltas.close()
        self._bases.close()
        self._producer.close()
        for letters in self._letters.values():
            letters.close()

    def _parsed(self, record: Any) -> Delta | None:
        try:
            return parse_chunk(record.value)
        except CorruptArtifact as error:
            self._letters[RANKER_DELTAS].set_aside(record, str(error))
            return None


@contextmanager
def _translated(topic: str) -> Iterator[None]:
    try:
        yield
    except KafkaError as error:
        raise Unavailable(f"{topic}: {error!r}") from error
