"""The event log: a bounded buffer in memory, a background flush to Kafka, and a spool on disk while Kafka is down.

`append` never blocks and never fails: logging must not cost a request its answer. Whatever is lost is counted with its reason.
What Kafka will never take (larger than the topic allows, or than any record of ours may be) goes to the dead letters and holds nothing up:
its letter takes its place, behind what is spooled, and is sent with the others.
A record may be written twice: readers go by its request_id and ignore the second. Knows no topic, no message type and no gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Sequence

from opentelemetry.metrics import CallbackOptions, Observation

from services.common.events.limits import MAX_RECORD_BYTES
from services.common.events.topics import BY_DLQ
from services.common.events.undeliverable import Sender, in_place_of
from services.common.platform.errors import Overloaded
from services.common.platform.kafka_record import NotAcknowledged, Record, Refusal
from services.common.platform.telemetry import Telemetry
from services.router.spool import Spool

_MAX_BATCH = 500
# Waiting records are bounded by their number (the settings); this bounds those that bring much context. One more may be above it.
_MAX_BUFFERED_BYTES = 64 * 1024 * 1024
_RETRY_S = 0.5
_MAX_FAILED_READS = 60
"""Of one segment, half a minute."""
_WARN_EVERY_S = 10.0

_log = logging.getLogger(__name__)


class KafkaEventLog:
    """Buffers, flushes and spools. Call `start` once, `close` last."""

    def __init__(self, sender: Sender, spool: Spool, *, max_buffered: int, flush_interval_ms: int, telemetry: Telemetry) -> None:
        """Records the counter `router.events` (by topic, outcome and reason) and the gauge `router.events.spool_bytes`.

        An outcome is "sent", "spooled", "set_aside" or "dropped".
        """
        self._sender = sender
        self._spool = spool
        self._max_buffered = max_buffered
        self._flush_interval_s = flush_interval_ms / 1e3
        self._buffer: deque[Record] = deque()
        self._num_buffered_bytes = 0
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._counter = telemetry.meter.create_counter("router.events", description="Records for Kafka by what became of them.")
        telemetry.meter.create_observable_gauge("router.events.spool_bytes", [self._observe_spool], unit="By")
        self.counts: Counter[str] = Counter()
        self._failed_reads = 0
        self._next_warning_s: dict[str, float] = {}

    def _observe_spool(self, _: CallbackOptions) -> list[Observation]:
        return [Observation(self._spool.num_bytes)]

    def start(self) -> None:
        """Begin to flush, what an earlier process left in the spool first."""
        if not self._spool.empty:
            _log.info("the spool holds %d bytes of records from before; they are sent first", self._spool.num_bytes)
        self._task = asyncio.create_task(self._run())

    async def watch(self) -> None:
        """Wait for the flusher, and raise what ended it: a router that logs nothing must not go on unnoticed."""
        if self._task is not None:
            await asyncio.shield(self._task)

    def append(self, record: Record) -> None:
        """Keep the record for Kafka; drop and count it when the buffer is full."""
        if len(self._buffer) >= self._max_buffered or self._num_buffered_bytes > _MAX_BUFFERED_BYTES:
            self._count("dropped", [record], "buffer_full")
            return
        if len(record.value) > MAX_RECORD_BYTES:
            letter = in_place_of(Refusal(record, f"the router writes at most {MAX_RECORD_BYTES} bytes of a value"))
            if letter is None:
                self._count("dropped", [record], "too_large")
                return
            record = letter
        self._buffer.append(record)
        self._num_buffered_bytes += len(record.value)
        self._wake.set()

    async def close(self) -> None:
        """Send what is buffered; what Kafka does not take goes to the spool, for the next process."""
        self._closing.set()
        self._wake.set()
        if self._task is not None:
            # What ended it was raised to whoever watches; what is buffered is kept all the same.
            await asyncio.wait([self._task])
        while self._buffer:
            batch = self._take()
            if self._spool.empty:
                still_open, letters = await self._deliver(batch)
                await self._keep(still_open)
                await self._keep_letters(letters)
            else:
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
        still_open, letters = await self._deliver(self._take())
        await self._keep(still_open)
        await self._keep_letters(letters)

    async def _flush_spool(self) -> None:
        """Older ones first: what is buffered goes behind what is spooled."""
        while self._buffer:
            await self._keep(self._take())
        try:
            batch = await asyncio.to_thread(self._spool.peek, _MAX_BATCH)
        except OSError as error:
            await self._unread(error)
            return
        self._failed_reads = 0
        if not batch:
            return
        still_open, letters = await self._deliver(batch)
        await self._keep_letters(letters)
        await asyncio.to_thread(self._spool.advance, len(batch), still_open)
        if still_open:
            await self._pause(_RETRY_S)

    async def _unread(self, error: OSError) -> None:
        """Try again, the disk may recover; after a while set the segment aside, or nothing behind it would ever be sent."""
        self._failed_reads += 1
        if self._failed_reads >= _MAX_FAILED_READS:
            self._failed_reads = 0
            num_bytes = self._spool.set_aside()
            _log.error("a segment of the spool cannot be read (%s): its %d bytes of records are set aside and not sent", error, num_bytes)
            return
        if self._failed_reads == 1:
            _log.warning("the spool cannot be read (%s) and is tried again", error)
        await self._pause(_RETRY_S)

    async def _deliver(self, batch: list[Record]) -> tuple[list[Record], list[Record]]:
        """Send records. Return those that are to be sent again, and what is to be sent in place of those refused."""
        still_open: Sequence[Record] = ()
        refused: Sequence[Refusal] = ()
        try:
            if batch:
                await self._sender.send(batch)
        except Overloaded:
            return batch, []
        except NotAcknowledged as error:
            still_open, refused = error.records, error.refused
        waiting = {id(record) for record in (*still_open, *(each.record for each in refused))}
        done = [record for record in batch if id(record) not in waiting]
        self._count("sent", [record for record in done if record.topic not in BY_DLQ])
        self._count("set_aside", [record for record in done if record.topic in BY_DLQ], "undeliverable")
        letters = []
        for each in refused:
            letter = in_place_of(each)
            if letter is None:
                self._count("dropped", [each.record], f"undeliverable, as is its dead letter: {each.cause}")
            else:
                letters.append(letter)
        return list(still_open), letters

    async def _keep_letters(self, letters: list[Record]) -> None:
        """Put dead letters behind what is spooled, from where they are sent like anything else."""
        if not letters:
            return
        try:
            kept = await asyncio.to_thread(self._spool.append, letters)
        except OSError as error:
            self._count("dropped", letters, f"undeliverable, and spool_failed: {error.strerror}")
            return
        self._count("dropped", letters[kept:], "undeliverable, and spool_full")

    async def _keep(self, records: list[Record]) -> None:
        if not records:
            return
        try:
            kept = await asyncio.to_thread(self._spool.append, records)
        except OSError as error:
            self._count("dropped", records, f"spool_failed: {error.strerror}")
            return
        self._count("spooled", records[:kept], "kafka_down")
        self._count("dropped", records[kept:], "spool_full")

    async def _pause(self, seconds: float) -> None:
        """Sleep; wake up early when the log is being closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    def _take(self) -> list[Record]:
        taken = [self._buffer.popleft() for _ in range(min(len(self._buffer), _MAX_BATCH))]
        self._num_buffered_bytes -= sum(len(record.value) for record in taken)
        return taken

    def _count(self, outcome: str, records: Sequence[Record], reason: str = "") -> None:
        if not records:
            return
        self.counts[outcome] += len(records)
        for topic, number in Counter(BY_DLQ[each.topic].name if each.topic in BY_DLQ else each.topic for each in records).items():
            self._counter.add(number, {"topic": topic, "outcome": outcome, "reason": reason})
        if outcome == "sent":
            return
        now_s = time.monotonic()
        if now_s >= self._next_warning_s.get(reason, 0.0):
            self._next_warning_s[reason] = now_s + _WARN_EVERY_S
            _log.warning("records for Kafka are %s (%s); so far %s", outcome, reason, dict(self.counts))
