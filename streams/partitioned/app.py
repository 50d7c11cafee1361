"""The Faust app of a stream that joins two topics: its two agents, the clock, and the life of a partition from assignment to revocation."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, Generic

from services.common.events.topics import Topic
from services.common.platform.clock import wall_ms
from services.common.platform.grpc_server import GrpcServer
from services.common.platform.partitioning import partition_of
from services.common.platform.telemetry import Telemetry
from streams import worker
from streams.logs import LogReader
from streams.partitioned.intake import Intake
from streams.partitioned.output import Output
from streams.partitioned.pace import TickPace
from streams.partitioned.reading_order import ReadingOrder
from streams.partitioned.runtime import CutT, EmissionT, Partition, PartitionRuntime
from streams.partitioned.settings import PartitionedSettings
from streams.strikes import strikes_of

_REPORT_INTERVAL_MS = 30_000
_CACHED_USERS = 200_000

_log = logging.getLogger(__name__)

# Returns a partition and where it writes to, given its number and its intake.
OpenPartition = Callable[[int, Intake], Awaitable[tuple[Partition[EmissionT, CutT], Output]]]


async def _nothing() -> None:
    """The default of what a stream may do beside."""


class PartitionedApp(Generic[EmissionT, CutT]):
    """The whole process of a stream of two topics: `run` it, and `stop` it afterwards.

    Attributes:
        app_id: the consumer group.
        reader: asks the broker, once the app runs.
    """

    def __init__(
        self,
        name: str,
        topics: tuple[Topic, Topic],
        settings: PartitionedSettings,
        telemetry: Telemetry,
        *,
        open_partition: OpenPartition[EmissionT, CutT],
        max_outbox: int,
        connect: Callable[[], Awaitable[None]],
        disconnect: Callable[[], Awaitable[None]],
        pace: TickPace | None = None,
        before_reading: Callable[[], Awaitable[None]] = _nothing,
        on_revoked: Callable[[], None] = lambda: None,
    ) -> None:
        """Connects nothing. Records the counter `<name>.events` by event and partition.

        Args:
            name: of the stream; its consumer group is `tunemesh-<name>`.
            topics: of the subjects and of the feedback about them, equally partitioned by user.
            settings: of the stream.
            telemetry: of the process.
            open_partition: called for each partition that this worker is given.
            max_outbox: while so many emissions of a partition wait to be written, nothing more of it is read.
            connect: connects what the stream writes with, and checks its other topics; called again while it raises Unavailable.
            disconnect: the opposite, at the end.
            pace: of the ticks; None: at the settings' interval.
            before_reading: called once, when everything is connected.
            on_revoked: called when all partitions have been taken away.
        """
        self.app_id = f"tunemesh-{name}"
        self.reader = LogReader(settings.kafka_bootstrap_servers, self.app_id)
        self._name = name
        self._topics = topics
        self._settings = settings
        self._open_partition = open_partition
        self._max_outbox = max_outbox
        self._connect, self._disconnect = connect, disconnect
        self._before_reading, self._forget = before_reading, on_revoked
        self._partition_of = _partition_of_user(settings.user_partitions)
        self._pace = pace or TickPace(settings.tick_interval_ms, settings.tick_interval_ms)
        self._order = ReadingOrder()
        self._strikes = strikes_of(settings.strikes_dir, self.app_id, settings.worker_id, settings.kafka_bootstrap_servers)
        self._partitions: dict[int, asyncio.Task[PartitionRuntime[EmissionT, CutT]]] = {}
        self._writers: dict[int, asyncio.Task[None]] = {}
        self._server: GrpcServer | None = None
        self._counter = telemetry.meter.create_counter(f"{name}.events", description="What became of the records, by event.")
        self._counted: Counter[str] = Counter()
        self._app = worker.new_app(
            self.app_id,
            bootstrap_servers=settings.kafka_bootstrap_servers,
            worker_id=settings.worker_id,
            session_timeout_ms=settings.session_timeout_ms,
            compression=settings.kafka_compression,
        )
        for topic in topics:
            agent = worker.fatal(self._app, self._take_all)
            self._app.agent(worker.raw_topic(self._app, topic.name), name=f"{name}.{topic.name}")(agent)
        self._app.on_partitions_revoked.connect(self._on_revoked)
        self._app.on_partitions_assigned.connect(self._on_assigned)

    async def run(self, server: GrpcServer) -> None:
        """Read and write until cancelled. The server says that it serves once all partitions of this worker are open.

        Raises:
            Unavailable: the broker or a topic is not there, even after a while.
            ConfigurationError: the topics are not partitioned as configured.
            StreamFailed: something broke; the next process takes up from the committed offsets.
        """
        self._server = server
        await worker.when_available("Kafka", self._connect_all)
        await self._before_reading()
        ticking = asyncio.create_task(self._tick_for_ever(), name=f"the clock of {self._name}")
        try:
            await worker.run_until_failure(self._app, ticking)
        finally:
            ticking.cancel()

    async def _connect_all(self) -> None:
        await self.reader.start()
        await self.reader.check_partitions([topic.name for topic in self._topics], self._settings.user_partitions)
        await self.reader.check_partitions([topic.dlq for topic in self._topics])
        await self._connect()

    async def stop(self) -> None:
        """Leave the group and disconnect. What is not committed is read again by the next process."""
        await self._on_revoked(self._app, ())
        await self._app.stop()
        await self.reader.stop()
        await self._disconnect()
        self._strikes.close()

    async def _take_all(self, stream: Any) -> None:
        async for event in stream.noack().events():
            runtime = await self._runtime_of(event.message)
            if runtime is not None:
                await runtime.take(event.message)

    async def _on_revoked(self, _app: Any, _revoked: Any, **_: Any) -> None:
        """Every rebalance takes all partitions away (eager protocol), so all memory is dropped: the logs have it."""
        for task in self._partitions.values():
            if task.done() and not task.cancelled() and task.exception() is None:
                task.result().close()
            task.cancel()
        for writer in self._writers.values():
            writer.cancel()
        self._partitions.clear()
        self._writers.clear()
        self._forget()

    async def _on_assigned(self, _app: Any, assigned: Any, **_: Any) -> None:
        names = {topic.name for topic in self._topics}
        for number in sorted({at.partition for at in assigned if at.topic in names}):
            task = asyncio.create_task(self._open(number), name=f"opening partition {number}")
            task.add_done_callback(worker.crash_on_failure(self._app))
            self._partitions[number] = task

    async def _open(self, number: int) -> PartitionRuntime[EmissionT, CutT]:
        first, second = self._topics
        starts = await self.reader.start_offset(first.name, number), await self.reader.start_offset(second.name, number)
        intake = Intake(
            number,
            starts,
            self._partition_of,
            allowance_ms=self._settings.idle_allowance_ms,
            max_pending_bytes=self._settings.max_pending_bytes // self._settings.user_partitions,
        )
        partition, output = await self._open_partition(number, intake)
        runtime = PartitionRuntime(
            partition,
            output,
            self._order,
            lambda message: message.ack(self._app.consumer),
            self._strikes,
            source=f"/tunemesh/{self._name}",
            max_outbox=self._max_outbox,
        )
        writer = asyncio.create_task(runtime.write(), name=f"writing partition {number}")
        writer.add_done_callback(worker.crash_on_failure(self._app))
        self._writers[number] = writer
        _log.info("partition %d taken up: %s from offset %d, %s from offset %d", number, first.name, starts[0], second.name, starts[1])
        if self._server is not None and all(task.done() or task is asyncio.current_task() for task in self._partitions.values()):
            await self._server.set_serving(True)
        return runtime

    async def _runtime_of(self, message: Any) -> PartitionRuntime[EmissionT, CutT] | None:
        """Return the runtime of the message's partition, once it is open; None when the message is from before a rebalance."""
        task = self._partitions.get(message.partition)
        if task is None:
            return None
        if not task.done():
            await asyncio.wait({task})
        if task.cancelled() or message.generation_id != self._app.consumer_generation_id:
            return None
        return task.result()

    async def _tick_for_ever(self) -> None:
        next_report_ms = wall_ms() + _REPORT_INTERVAL_MS
        while True:
            await asyncio.sleep(self._pace.pause_ms(wall_ms()) / 1e3)
            now_ms, opened = wall_ms(), self._opened()
            # Left out of one partition, a tick would part its number from those of the others.
            is_wanted = any(each.wants_tick(now_ms) for each in opened.values()) and all(each.may_tick for each in opened.values())
            num_records = len(opened) + sum(each.num_since_tick for each in opened.values())
            if self._pace.is_due(now_ms, is_wanted=is_wanted, num_records=num_records):
                began = time.perf_counter()
                await self._tick(now_ms, opened)
                self._pace.ticked(now_ms, (time.perf_counter() - began) * 1e3)
            if wall_ms() >= next_report_ms:
                next_report_ms += _REPORT_INTERVAL_MS
                _log.info("so far: %s", ", ".join(f"{name} {count}" for name, count in sorted(self._counted.items())) or "nothing")

    def _opened(self) -> dict[int, PartitionRuntime[EmissionT, CutT]]:
        return {number: task.result() for number, task in self._partitions.items() if task.done() and not task.cancelled()}

    async def _tick(self, now_ms: int, opened: Mapping[int, PartitionRuntime[EmissionT, CutT]]) -> None:
        """The ends are asked for after the clock was read: whatever was in a log at `now_ms` is below them."""
        first, second = (topic.name for topic in self._topics)
        told = await self.reader.ends([(name, number) for name in (first, second) for number in opened])
        for number, runtime in opened.items():
            if runtime.is_closed:
                continue
            ends = worker.known_end(self._app, told, first, number), worker.known_end(self._app, told, second, number)
            runtime.tick(now_ms, ends)
            for event, count in runtime.new_counts().items():
                self._counted[event] += count
                self._counter.add(count, {"event": event, "partition": number})


def _partition_of_user(num_partitions: int) -> Callable[[str], int]:
    """Return a function that remembers the latest users, since murmur2 in Python takes 2 µs."""

    @lru_cache(_CACHED_USERS)
    def partition_of_id(user_id: str) -> int:
        return partition_of(user_id.encode(), num_partitions)

    return partition_of_id
