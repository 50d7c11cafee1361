"""The curator's wiring: the Faust app with its two agents, the clock, and the life of a partition from assignment to revocation."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

from services.common.events.topics import FEEDBACK, GENERATIONS, LLM_EXAMPLES
from services.common.platform.errors import Unavailable
from services.common.platform.grpc_server import GrpcServer
from services.common.platform.kafka_async import AsyncProducer
from services.common.platform.partitioning import partition_of
from services.common.platform.telemetry import Telemetry
from services.common.platform.topic_follower import TopicFollower
from streams import worker
from streams.curator.core import CurateConfig, CuratorPartition
from streams.curator.runtime import PartitionRuntime, wall_clock_ms
from streams.curator.seen_examples import SeenExamples
from streams.curator.settings import CuratorSettings
from streams.logs import LogReader
from streams.reading_order import ReadingOrder

APP_ID = "tunemesh-curator"
_EXAMPLES_TIMEOUT_S = 60.0
_REPORT_INTERVAL_MS = 30_000

_log = logging.getLogger(__name__)


class Curator:
    """The whole process: `run` it, and `stop` it afterwards."""

    def __init__(self, settings: CuratorSettings, telemetry: Telemetry) -> None:
        """Connects nothing."""
        self._settings = settings
        self._telemetry = telemetry
        self._producer = AsyncProducer(settings.kafka_bootstrap_servers, client_id=APP_ID, delivery_timeout_ms=settings.delivery_timeout_ms)
        self._reader = LogReader(settings.kafka_bootstrap_servers, APP_ID)
        self._seen = SeenExamples()
        self._follower = TopicFollower(settings.kafka_bootstrap_servers, LLM_EXAMPLES.name, self._seen, client_id=APP_ID)
        self._app = worker.new_app(
            APP_ID,
            bootstrap_servers=settings.kafka_bootstrap_servers,
            worker_id=settings.worker_id,
            session_timeout_ms=settings.session_timeout_ms,
        )
        self._config = CurateConfig(
            window_ms=settings.window_ms,
            wait_ms=settings.wait_ms,
            allowance_ms=settings.idle_allowance_ms,
            max_pending_bytes=settings.max_pending_bytes // settings.user_partitions,
        )
        self._order = ReadingOrder()
        self._partitions: dict[int, asyncio.Task[PartitionRuntime]] = {}
        self._writers: dict[int, asyncio.Task[None]] = {}
        self._server: GrpcServer | None = None
        self._counter = telemetry.meter.create_counter("curator.events", description="What the curation did, by event.")
        self._counted: Counter[str] = Counter()
        self._add_agents()

    def _add_agents(self) -> None:
        async def generations(stream: Any) -> None:
            async for event in stream.noack().events():
                runtime = await self._runtime_of(event.message)
                if runtime is not None:
                    await runtime.take_generation(event.message)

        async def feedback(stream: Any) -> None:
            async for event in stream.noack().events():
                runtime = await self._runtime_of(event.message)
                if runtime is not None:
                    await runtime.take_feedback(event.message)

        self._app.agent(worker.raw_topic(self._app, GENERATIONS.name), name="curator.generations")(worker.fatal(self._app, generations))
        self._app.agent(worker.raw_topic(self._app, FEEDBACK.name), name="curator.feedback")(worker.fatal(self._app, feedback))
        self._app.on_partitions_revoked.connect(self._on_revoked)
        self._app.on_partitions_assigned.connect(self._on_assigned)

    async def run(self, server: GrpcServer) -> None:
        """Curate until cancelled.

        Raises:
            Unavailable: the broker or a topic is not there, even after a while.
            ConfigurationError: the topics are not partitioned as configured.
            StreamFailed: something broke; the next process takes up from the committed offsets.
        """
        self._server = server
        await worker.when_available("Kafka", self._connect)
        self._follower.start()
        if not await asyncio.to_thread(self._follower.wait_ready, _EXAMPLES_TIMEOUT_S):
            raise Unavailable(f"{LLM_EXAMPLES.name} could not be read to its end in {_EXAMPLES_TIMEOUT_S:.0f} s")
        ticking = asyncio.create_task(self._tick_for_ever(), name="the curator's clock")
        try:
            await worker.run_until_failure(self._app, ticking)
        finally:
            ticking.cancel()

    async def _connect(self) -> None:
        await self._reader.start()
        await self._reader.check_partitions([topic.name for topic in (GENERATIONS, FEEDBACK)], self._settings.user_partitions)
        await self._reader.check_partitions([LLM_EXAMPLES.name, GENERATIONS.dlq, FEEDBACK.dlq])
        if not self._producer.connected:
            await self._producer.start(wait_s=1.0)

    async def stop(self) -> None:
        """Leave the group and close the connections. What is not committed is read again by the next process."""
        await self._on_revoked(self._app, ())
        await self._app.stop()
        await self._producer.stop()
        await self._reader.stop()
        await asyncio.to_thread(self._follower.stop, 1.0)

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
        self._seen.forget_unconfirmed()

    async def _on_assigned(self, _app: Any, assigned: Any, **_: Any) -> None:
        for partition in sorted({at.partition for at in assigned if at.topic in (GENERATIONS.name, FEEDBACK.name)}):
            task = asyncio.create_task(self._open(partition), name=f"opening partition {partition}")
            task.add_done_callback(worker.crash_on_failure(self._app))
            self._partitions[partition] = task

    async def _open(self, partition: int) -> PartitionRuntime:
        generations_start, feedback_start = [await self._reader.start_offset(topic.name, partition) for topic in (GENERATIONS, FEEDBACK)]
        core = CuratorPartition(
            partition,
            self._config,
            self._seen,
            self._partition_of,
            generations_start=generations_start,
            feedback_start=feedback_start,
        )
        runtime = PartitionRuntime(core, self._producer, self._telemetry, self._order, lambda message: message.ack(self._app.consumer))
        writer = asyncio.create_task(runtime.write(), name=f"writing partition {partition}")
        writer.add_done_callback(worker.crash_on_failure(self._app))
        self._writers[partition] = writer
        _log.info("partition %d taken up: answers from %d, feedback from %d", partition, generations_start, feedback_start)
        if self._server is not None and all(task.done() or task is asyncio.current_task() for task in self._partitions.values()):
            await self._server.set_serving(True)
        return runtime

    def _partition_of(self, user_id: str) -> int:
        return partition_of(user_id.encode(), self._settings.user_partitions)

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
        next_report_ms = wall_clock_ms() + _REPORT_INTERVAL_MS
        while True:
            await asyncio.sleep(self._settings.tick_interval_ms / 1e3)
            await self._tick(wall_clock_ms())
            if wall_clock_ms() >= next_report_ms:
                next_report_ms += _REPORT_INTERVAL_MS
                _log.info("so far: %s", ", ".join(f"{name} {count}" for name, count in sorted(self._counted.items())) or "nothing")

    async def _tick(self, now_ms: int) -> None:
        """The ends are asked for after the clock was read: whatever was in a log at `now_ms` is below them."""
        opened = {number: task for number, task in self._partitions.items() if task.done() and not task.cancelled()}
        ends = await self._reader.ends([(topic.name, number) for topic in (GENERATIONS, FEEDBACK) for number in opened])
        for number, task in opened.items():
            runtime = task.result()
            if runtime.is_closed:
                continue
            runtime.tick(
                now_ms,
                generations_end=worker.known_end(self._app, ends, GENERATIONS.name, number),
                feedback_end=worker.known_end(self._app, ends, FEEDBACK.name, number),
            )
            for event, count in runtime.new_counts().items():
                self._counted[event] += count
                self._counter.add(count, {"event": event, "partition": number})
