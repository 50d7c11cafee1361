"""The exposure log: a bounded buffer in memory, a background flush to Kafka, and a spool on disk while Kafka is away.

`append` never blocks and never fails: logging must not cost a request its answer. Whatever is lost is counted with its reason.
An exposure may be written twice (same request_id): its readers ignore the second. Knows no gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Protocol

from opentelemetry.metrics import CallbackOptions, Observation
from tunemesh.events.v1 import exposure_pb2

from services.common.envelope import headers_for
from services.common.kafka_async import NotAcknowledged, Record
from services.common.telemetry import Telemetry, current_traceparent
from services.common.topics import EXPOSURES
from services.router.core import Exposure
from services.router.spool import Spool

_MAX_BATCH = 500
_MAX_RECORD_BYTES = 900_000
_RETRY_S = 0.5
_WARN_EVERY_S = 10.0

_log = logging.getLogger(__name__)


class Sender(Protocol):
    """What the log needs of `services.common.kafka_async.AsyncProducer`."""

    async def send(self, records: Sequence[Record]) -> None:
        """Return once all are acknowledged; raise NotAcknowledged with the others."""
        ...


def to_record(exposure: Exposure) -> Record:
    """Encode an exposure for exposures.v1; the active span goes along."""
    answer = exposure.recommendation
    ranking = answer.ranking
    value = exposure_pb2.Exposure(
        request_id=answer.request_id,
        user_id=exposure.user_id,
        exposed_at_ms=exposure.exposed_at_ms,
        item_ids=[item.item_id for item in ranking.items],
        features_block=ranking.features_block,
        schema_hash=ranking.schema_hash,
        experiment=answer.experiment,
        variant=answer.variant,
        model_version=ranking.model_version,
        degraded_reason=ranking.degraded_reason,
        idempotency_key=exposure.idempotency_key,
        candidates_given=exposure.candidates_given,
    ).SerializeToString()
    headers = headers_for(
        EXPOSURES.value,
        "/tunemesh/router",
        event_id=answer.request_id,
        time_ms=exposure.exposed_at_ms,
        traceparent=current_traceparent(),
    )
    return Record(EXPOSURES.name, exposure.user_id.encode(), value, headers)


class KafkaExposureLog:
    """Buffers, flushes and spools. Call `start` once, `close` last."""

    def __init__(self, sender: Sender, spool: Spool, *, max_buffered: int, flush_interval_ms: int, telemetry: Telemetry) -> None:
        """Records the counter `router.exposures` (outcome: sent, spooled, dropped; reason) and the gauge `router.exposures.spool_bytes`."""
        self._sender = sender
        self._spool = spool
        self._max_buffered = max_buffered
        self._flush_interval_s = flush_interval_ms / 1e3
        self._buffer: deque[Record] = deque()
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._counter = telemetry.meter.create_counter("router.exposures", description="Exposures by what became of them.")
        telemetry.meter.create_observable_gauge("router.exposures.spool_bytes", [self._observe_spool], unit="By")
        self.counts: Counter[str] = Counter()
        self._next_warning_s: dict[str, float] = {}

    def _observe_spool(self, _: CallbackOptions) -> list[Observation]:
        return [Observation(self._spool.num_bytes)]

    def start(self) -> None:
        """Begin to flush, what an earlier process left in the spool first."""
        if not self._spool.empty:
            _log.info("the spool holds %d bytes of exposures from before; they are sent first", self._spool.num_bytes)
        self._task = asyncio.create_task(self._run())

    async def watch(self) -> None:
        """Wait for the flusher, and raise what ended it: a router that logs nothing must not go on unnoticed."""
        if self._task is not None:
            await asyncio.shield(self._task)

    def append(self, exposure: Exposure) -> None:
        """Keep the exposure for Kafka; drop and count it when the buffer is full."""
        record = to_record(exposure)
        if len(self._buffer) >= self._max_buffered:
            self._count("dropped", 1, "buffer_full")
        elif len(record.value) > _MAX_RECORD_BYTES:
            self._count("dropped", 1, "too_large")
        else:
            self._buffer.append(record)
            self._wake.set()

    async def close(self) -> None:
        """Send what is buffered; what Kafka does not take goes to the spool, for the next process."""
        self._closing.set()
        self._wake.set()
        if self._task is not None:
            await self._task
        while self._buffer:
            batch = self._take()
            if self._spool.empty and await self._send(batch):
                continue
            await self._keep(batch)
        self._spool.close()

    async def _run(self) -> None:
        while not self._closing.is_set():
            if self._spool.empty:
                await self._flush_buffer()
            else:
                await self._flush_spool()

    async def _flush_buffer(self) -> None:
        if not self._buffer:
            await self._wake.wait()
            await self._pause(self._flush_interval_s)
        self._wake.clear()
        if self._closing.is_set():
            return
        batch = self._take()
        try:
            await self._deliver(batch)
        except NotAcknowledged as error:
            await self._keep(error.records)

    async def _flush_spool(self) -> None:
        """Older ones first: what is buffered goes behind what is spooled."""
        while self._buffer:
            await self._keep(self._take())
        batch = await asyncio.to_thread(self._spool.peek, _MAX_BATCH)
        if not batch:
            return
        if await self._send(batch):
            await asyncio.to_thread(self._spool.advance, len(batch))
        else:
            await self._pause(_RETRY_S)

    async def _send(self, batch: list[Record]) -> bool:
        try:
            await self._deliver(batch)
        except NotAcknowledged:
            return False
        return True

    async def _deliver(self, batch: list[Record]) -> None:
        if not batch:
            return
        try:
            await self._sender.send(batch)
        except NotAcknowledged as error:
            self._count("sent", len(batch) - len(error.records))
            raise
        self._count("sent", len(batch))

    async def _keep(self, records: list[Record]) -> None:
        try:
            kept = await asyncio.to_thread(self._spool.append, records)
        except OSError as error:
            self._count("dropped", len(records), f"spool_failed: {error.strerror}")
            return
        self._count("spooled", kept, "kafka_away")
        self._count("dropped", len(records) - kept, "spool_full")

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not into a shutdown."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    def _take(self) -> list[Record]:
        return [self._buffer.popleft() for _ in range(min(len(self._buffer), _MAX_BATCH))]

    def _count(self, outcome: str, number: int, reason: str = "") -> None:
        if number == 0:
            return
        self.counts[outcome] += number
        self._counter.add(number, {"outcome": outcome, "reason": reason})
        if outcome == "sent":
            return
        now_s = time.monotonic()
        if now_s >= self._next_warning_s.get(reason, 0.0):
            self._next_warning_s[reason] = now_s + _WARN_EVERY_S
            _log.warning("exposures are %s (%s); so far %s", outcome, reason, dict(self.counts))
