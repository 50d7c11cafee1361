"""The updater's side of Kafka: assigned partitions, own offsets, and an offset out of range is an error."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from google.protobuf.message import DecodeError
from kafka import TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError
from tunemesh.events.v1 import delta_pb2
from tunemesh.events.v1.control_pb2 import ControlRecord
from tunemesh.events.v1.delta_pb2 import Delta, ReplicaStatus
from typing_extensions import override

from services.common.events.envelope import headers_for
from services.common.events.topics import CONTROL, RANKER_BASES, RANKER_DELTAS, REPLICAS
from services.common.platform.clock import wall_ms
from services.common.platform.errors import Unavailable
from services.common.platform.kafka import assigned_consumer, drain_to_end, read_compacted
from services.common.platform.kafka_producer import RenewedProducer
from services.common.platform.traceparent import traceparent_of
from services.common.ranker.tables.control_block import Applied
from services.recommender.updater.core import HistoryLost
from services.recommender.updater.worker import DeltaRecord, Feed

_log = logging.getLogger(__name__)

SOURCE = "/tunemesh/updater"
_CLIENT_ID = "tunemesh-updater"
_LINEAGE_SUBJECT = b"lineage"
_CONNECT_TIMEOUT_MS = 5_000


class KafkaFeed(Feed):
    """Meets `worker.Feed`: one shard's partition of the deltas, and the announcements."""

    def __init__(self, bootstrap_servers: str, *, model: str, replica_id: str, shard: int = 0) -> None:
        """Connect.

        Raises:
            Unavailable: no broker, or a topic is missing.
        """
        self._bootstrap_servers = bootstrap_servers
        self._model, self._replica_id = model, replica_id
        self._partition = TopicPartition(RANKER_DELTAS.name, shard)
        self._position = 0
        self._has_read_bases = False
        self._deltas = self._consumer(RANKER_DELTAS.name, shard, fetch_wait_ms=100)
        self._bases = self._consumer(RANKER_BASES.name, 0, fetch_wait_ms=1_000)  # a base is rare and may be late
        self._producer = RenewedProducer(bootstrap_servers, client_id=_CLIENT_ID)

    def _consumer(self, topic: str, partition: int, *, fetch_wait_ms: int) -> Any:
        return assigned_consumer(
            self._bootstrap_servers,
            topic,
            [partition],
            start="beginning",
            client_id=_CLIENT_ID,
            bootstrap_timeout_ms=_CONNECT_TIMEOUT_MS,
            fetch_max_wait_ms=fetch_wait_ms,
        )

    @override
    def lineage_id(self) -> str:
        newest = read_compacted(self._bootstrap_servers, CONTROL.name, client_id=_CLIENT_ID, timeout_ms=_CONNECT_TIMEOUT_MS)
        record = newest.get(_LINEAGE_SUBJECT)
        return ControlRecord.FromString(record.value).lineage.lineage_id if record is not None else ""

    @override
    def new_bases(self) -> list[delta_pb2.BasePointer]:
        """Return the pointers written since the last call, at first all of them. What cannot be parsed is logged and left out."""
        with _translated(RANKER_BASES.name):
            if self._has_read_bases:
                records = [record for batch in self._bases.poll(timeout_ms=0).values() for record in batch]
            else:
                records = drain_to_end(self._bases)
                self._has_read_bases = True
        pointers = []
        for record in records:
            try:
                pointers.append(delta_pb2.BasePointer.FromString(record.value or b""))
            except DecodeError as error:
                _log.error("%s: the record at offset %d cannot be parsed: %s", RANKER_BASES.name, record.offset, error)
        return pointers

    @override
    def seek(self, offset: int) -> None:
        self._deltas.seek(self._partition, offset)
        self._position = offset

    @override
    def deltas(self, timeout_ms: int) -> Sequence[DeltaRecord]:
        with _translated(RANKER_DELTAS.name):
            records = self._deltas.poll(timeout_ms=timeout_ms).get(self._partition, [])
        if records:
            self._position = records[-1].offset + 1
        return [DeltaRecord(record.offset, _parse_delta(record.value), traceparent_of(record.headers)) for record in records]

    @override
    def seems_shorter(self) -> bool:
        """Return whether the log ends before what was read.

        The embedded broker also says so by mistake: after a batch of several records its end is that of the first one.
        """
        with _translated(RANKER_DELTAS.name):
            end = self._deltas.end_offsets([self._partition], timeout_ms=_CONNECT_TIMEOUT_MS)[self._partition]
        return bool(end < self._position)

    @override
    def report(self, applied: Applied) -> None:
        status = ReplicaStatus(
            replica_id=self._replica_id,
            model=self._model,
            base_id=applied.base_id,
            epoch=applied.epoch,
            seq=applied.seq,
            watermark_ms=applied.watermark_ms,
            reported_at_ms=wall_ms(),
            delta_offsets=[applied.delta_offset],
        )
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


def _parse_delta(value: bytes | None) -> Delta | None:
    try:
        return Delta.FromString(value or b"")
    except DecodeError:
        return None


@contextmanager
def _translated(topic: str) -> Iterator[None]:
    try:
        yield
    except OffsetOutOfRangeError as error:
        raise HistoryLost(f"{topic}: {error}") from error
    except KafkaError as error:
        raise Unavailable(f"{topic}: {error!r}") from error
