"""The joiner's wiring: the Faust app with its two agents, the clock, and the life of a partition from assignment to revocation."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from functools import lru_cache
from typing import Any

from services.common.events.topics import EXPOSURES, FEEDBACK, SAMPLES
from services.common.platform.grpc_server import GrpcServer
from services.common.platform.partitioning import partition_of
from services.common.platform.telemetry import Telemetry
from services.common.ranker.feature_spec import FeatureSpec
from streams import worker
from streams.joiner.core import JoinConfig, JoinerPartition
from streams.joiner.kafka_output import OrderedProducer, read_resume
from streams.joiner.runtime import PartitionRuntime, wall_clock_ms
from streams.joiner.settings import JoinerSettings
from streams.logs import LogReader
from streams.reading_order import ReadingOrder

APP_ID = "tunemesh-joiner"
_REPORT_INTERVAL_MS = 30_000
_CACHED_USERS = 200_000

_log = logging.getLogger(__name__)


class Joiner:
    """The whole process: `run` it, and `stop` it afterwards."""

    def __init__(self, settings: JoinerSettings, telemetry: Telemetry) -> None:
        """Reads the feature spec; connects nothing.

        Raises:
            ConfigurationError: the feature spec is missing or wrong.
        """
        self._settings = settings
        self._telemetry = telemetry
        self._spec = FeatureSpec.load(settings.feature_spec_path)
        self._producer = OrderedProducer(settings.kafka_bootstrap_servers, APP_ID)
        self._reader = LogReader(settings.kafka_bootstrap_servers, APP_ID)
        self._app = worker.new_app(
            APP_ID,
            bootstrap_servers=settings.kafka_bootstrap_servers,
            worker_id=settings.worker_id,
            session_timeout_ms=settings.session_timeout_ms,
        )
        self._config = JoinConfig(
            window_ms=settings.window_ms,
            late_horizon_ms=settings.late_horizon_ms,
            tick_interval_ms=settings.tick_interval_ms,
            allowance_ms=settings.idle_allowance_ms,
            max_pending_bytes=settings.max_pending_bytes // settings.user_partitions,
            num_partitions=settings.user_partitions,
        )
        self._partition_of = _partitioner(settings.user_partitions)
        self._order = ReadingOrder()
        self._partitions: dict[int, asyncio.Task[PartitionRuntime]] = {}
        self._writers: dict[int, asyncio.Task[None]] = {}
        self._server: GrpcServer | None = None
        self._counter = telemetry.meter.create_counter("joiner.events", description="What the join did, by event.")
        self._counted: Counter[str] = Counter()
        self._add_agents()

    def _add_agents(self) -> None:
        async def exposures(stream: Any) -> None:
            async for event in stream.noack().events():
                runtime = await self._runtime_of(event.message)
                if runtime is not None:
                    await runtime.take_exposure(event.message)

        async def feedback(stream: Any) -> None:
            async for event in stream.noack().events():
                runtime = await self._runtime_of(event.message)
                if runtime is not None:
                    await runtime.take_feedback(event.message)

        self._app.agent(worker.raw_topic(self._app, EXPOSURES.name), name="joiner.exposures")(worker.fatal(self._app, exposures))
        self._app.agent(worker.raw_topic(self._app, FEEDBACK.name), name="joiner.feedback")(worker.fatal(self._app, feedback))
        self._app.on_partitions_revoked.connect(self._on_revoked)
        self._app.on_partitions_assigned.connect(self._on_assigned)

    async def run(self, server: GrpcServer) -> None:
        """Join until cancelled.

        Raises:
            Unavailable: the broker or a topic is not there, even after a while.
            ConfigurationError: the topics are not partitioned as configured.
            StreamFailed: something broke; the next process takes up from the committed offsets.
        """
        self._server = server
        await worker.when_available("Kafka", self._connect)
        ticking = asyncio.create_task(self._tick_for_ever(), name="the joiner's clock")
        try:
            await worker.run_until_failure(self._app, ticking)
        finally:
            ticking.cancel()

    async def _connect(self) -> None:
        await self._reader.start()
        await self._reader.check_partitions([topic.name for topic in (EXPOSURES, FEEDBACK, SAMPLES)], self._settings.user_partitions)
        await self._reader.check_partitions([EXPOSURES.dlq, FEEDBACK.dlq])
        await self._producer.start()

    async def stop(self) -> None:
        """Leave the group and close the connections. What is not committed is read again by the next process."""
        await self._on_revoked(self._app, ())
        await self._app.stop()
        await self._producer.stop()
        await self._reader.stop()

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

    async def _on_assigned(self, _app: Any, assigned: Any, **_: Any) -> None:
        for partition in sorted({at.partition for at in assigned if at.topic in (EXPOSURES.name, FEEDBACK.name)}):
            task = asyncio.create_task(self._open(partition), name=f"opening partition {partition}")
            task.add_done_callback(worker.crash_on_failure(self._app))
            self._partitions[partition] = task

    async def _open(self, partition: int) -> PartitionRuntime:
        resume = await read_resume(self._reader, partition)
        joiner = JoinerPartition(partition, self._spec, self._config, self._partition_of, resume)
        runtime = PartitionRuntime(
            partition,
            joiner,
            self._spec.schema_hash,
            self._producer,
            self._telemetry,
            self._order,
            lambda message: message.ack(self._app.consumer),
        )
        writer = asyncio.create_task(runtime.write(), name=f"writing partition {partition}")
        writer.add_done_callback(worker.crash_on_failure(self._app))
        self._writers[partition] = writer
        _log.info("partition %d taken up: %s", partition, resume)
        if self._server is not None and all(task.done() or task is asyncio.current_task() for task in self._partitions.values()):
            await self._server.set_serving(True)
        return runtime

    async def _runtime_of(self, message: Any) -> PartitionRuntime | None:
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
        interval_ms = self._config.tick_interval_ms
        next_report_ms = wall_clock_ms() + _REPORT_INTERVAL_MS
        while True:
            # One millisecond into the interval, so that a timer that fires early does not repeat a number.
            await asyncio.sleep((interval_ms - wall_clock_ms() % interval_ms + 1) / 1e3)
            await self._tick(wall_clock_ms())
            if wall_clock_ms() >= next_report_ms:
                next_report_ms += _REPORT_INTERVAL_MS
                _log.info("so far: %s", ", ".join(f"{name} {count}" for name, count in sorted(self._counted.items())) or "nothing")

    async def _tick(self, now_ms: int) -> None:
        """The ends are asked for after the clock was read: whatever was in a log at `now_ms` is below them."""
        opened = {number: task for number, task in self._partitions.items() if task.done() and not task.cancelled()}
        ends = await self._reader.ends([(topic.name, number) for topic in (EXPOSURES, FEEDBACK) for number in opened])
        for number, task in opened.items():
            runtime = task.result()
            if runtime.is_closed:
                continue
            runtime.tick(
                now_ms,
                exposures_end=worker.known_end(self._app, ends, EXPOSURES.name, number),
                feedback_end=worker.known_end(self._app, ends, FEEDBACK.name, number),
            )
            for event, count in runtime.new_counts().items():
                self._counted[event] += count
                self._counter.add(count, {"event": event, "partition": number})


def _partitioner(num_partitions: int) -> Any:
    """Return the choice of partition by user id, remembered for the latest users: a long join asks for the same ones again and again."""

    @lru_cache(_CACHED_USERS)
    def of_user(user_id: str) -> int:
        return partition_of(user_id.encode(), num_partitions)

    return of_user
