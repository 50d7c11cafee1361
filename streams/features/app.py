"""The feature stream's wiring: the Faust app with its agent, and one worker per partition that gathers acts, applies and writes them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from opentelemetry.metrics import Observation

from services.common.events.dead_letter_reasons import KILLED_WORKER
from services.common.events.dead_letters import dead_letter, dead_letter_headers
from services.common.events.envelope import MalformedRecord
from services.common.events.topics import CATALOG, FEEDBACK, PROFILES
from services.common.events.undeliverable import Undeliverable
from services.common.platform.clock import wall_ms
from services.common.platform.errors import ConfigurationError, CorruptArtifact, Unavailable
from services.common.platform.grpc_server import GrpcServer
from services.common.platform.kafka_async import AsyncProducer
from services.common.platform.kafka_record import Record
from services.common.platform.partitioning import partition_of
from services.common.platform.settings import REDIS_URL_FORM, variable_of
from services.common.platform.telemetry import Telemetry
from services.common.ranker.feature_spec import FeatureSpec
from streams import worker
from streams.features.catalog import CatalogFollower
from streams.features.codec import read_act
from streams.features.core import Act, FeaturePartition
from streams.features.profile_store import ProfileStore
from streams.features.profiles import ProfileFollower
from streams.features.settings import FeaturesSettings
from streams.features.store import FeatureStore
from streams.logs import LogReader
from streams.strikes import Strikes, strikes_of

APP_ID = "tunemesh-features"
_SOURCE = "/tunemesh/features"
_MAX_GATHERED = 5_000
_WAIT_S = 0.02
_RETRY_S = 0.5
_DELIVERY_TIMEOUT_MS = 5_000

_log = logging.getLogger(__name__)


class PartitionWorker:
    """Gathers the messages of one partition and writes them, batch by batch; acknowledges what is in Redis."""

    def __init__(
        self,
        partition: int,
        settings: FeaturesSettings,
        store: FeatureStore,
        catalog: CatalogFollower,
        strikes: Strikes,
        set_aside: Callable[[Any, str, str], Awaitable[None]],
        ack: Callable[[Any], object],
    ) -> None:
        """Reads nothing yet.

        Args:
            partition: its number.
            settings: of the stream.
            store: of the states.
            catalog: knows the categories of items.
            strikes: the process's.
            set_aside: writes a message, the reason and the details to the dead letters; returns when the broker has it.
            ack: acknowledges one message of the stream.
        """
        self.num_applied = 0
        self.num_about_answers = 0
        self._partition = partition
        self._settings = settings
        self._store = store
        self._catalog = catalog
        self._strikes = strikes
        self._set_aside = set_aside
        self._ack = ack
        self._gathered: deque[Any] = deque()
        self._is_closed = False

    def close(self) -> None:
        """Take nothing more: whoever waits in `take` goes on. The one agent of all partitions would wait for ever otherwise."""
        self._is_closed = True

    async def take(self, message: Any) -> None:
        """Add one message; waits while too many are waiting. A closed one lets go of it: its partition's next worker reads it."""
        while not self._is_closed and len(self._gathered) >= _MAX_GATHERED:
            await asyncio.sleep(_WAIT_S)
        if not self._is_closed:
            self._gathered.append(message)

    async def run(self, reducer: FeaturePartition) -> None:
        """Write what is gathered, for ever."""
        await self._catalog.ready.wait()
        while True:
            await asyncio.sleep(self._settings.flush_interval_ms / 1e3)
            while self._gathered:
                batch = self._next_batch()
                condemned = self._strikes.condemned(batch[0])
                if condemned:
                    await self._set_aside(batch[0], KILLED_WORKER, condemned)
                else:
                    # A damaged state is no fault of the record that needs it.
                    with self._strikes.on_trial(batch, unless=(CorruptArtifact,)):
                        await self._write(reducer, batch)
                for message in batch:
                    self._ack(message)

    def _next_batch(self) -> list[Any]:
        """Return the next messages; one that the worker died with before comes alone."""
        batch = [self._gathered.popleft()]
        if self._strikes.is_suspect(batch[0]):
            return batch
        while self._gathered and len(batch) < self._settings.max_batch and not self._strikes.is_suspect(self._gathered[0]):
            batch.append(self._gathered.popleft())
        return batch

    async def _write(self, reducer: FeaturePartition, batch: list[Any]) -> None:
        acts: list[tuple[Any, Act]] = []
        for message in batch:
            with self._strikes.working_on(message):
                act = self._act_of(message)
            if act is not None and not reducer.is_applied(act.offset):
                acts.append((message, act))
        if not acts:
            return
        users = [act.interaction.user_id for _, act in acts]
        items = [act.interaction.item_id for _, act in acts]
        await _until_redis_answers(lambda: self._store.load(self._partition, reducer, users, items))
        for message, act in acts:
            with self._strikes.working_on(message):
                self.num_applied += reducer.apply(act, self._catalog.categories_of(act.interaction.item_id))
        changes = reducer.take_changes()
        if changes:
            await _until_redis_answers(lambda: self._store.save(self._partition, reducer, changes))
        reducer.cache.trim(self._settings.cached_states)

    def _act_of(self, message: Any) -> Act | None:
        """Return the act in a message; None when it is malformed or misplaced: the joiner sets it aside, or forwards it here."""
        try:
            act = read_act(message, wall_ms())
        except MalformedRecord:
            return None
        if act is None:
            self.num_about_answers += 1
            return None
        owner = partition_of(act.interaction.user_id.encode(), self._settings.user_partitions)
        return act if owner == self._partition else None


async def _until_redis_answers(attempt: Any) -> None:
    """Repeat a call while Redis does not answer: what is not written is not acknowledged, so there is nothing to lose but time."""
    is_first = True
    while True:
        try:
            await attempt()
        except Unavailable as error:
            if is_first:
                _log.warning("trying again until Redis answers: %s", error)
                is_first = False
            await asyncio.sleep(_RETRY_S)
        else:
            return


class FeatureStream:
    """The whole process: `run` it, and `stop` it afterwards."""

    def __init__(self, settings: FeaturesSettings, telemetry: Telemetry) -> None:
        """Reads the feature spec; connects nothing.

        Raises:
            ConfigurationError: the feature spec is missing or wrong, or the Redis URL is malformed.
        """
        self._settings = settings
        self._spec = FeatureSpec.load(settings.feature_spec_path)
        try:
            self._store = FeatureStore(settings.redis_url.get_secret_value(), self._spec, settings.user_partitions)
            self._profiles = ProfileStore(settings.redis_url.get_secret_value())
        except ValueError as error:
            raise ConfigurationError(f"{variable_of(settings, 'redis_url')}={settings.redis_url}: {REDIS_URL_FORM}") from error
        self._catalog = CatalogFollower()
        self._reader = LogReader(settings.kafka_bootstrap_servers, APP_ID)
        self._undeliverable = Undeliverable(telemetry)
        self._producer = AsyncProducer(
            settings.kafka_bootstrap_servers,
            client_id=APP_ID,
            delivery_timeout_ms=_DELIVERY_TIMEOUT_MS,
            compression=settings.kafka_compression,
        )
        self._strikes = strikes_of(settings.strikes_dir, APP_ID, settings.worker_id, settings.kafka_bootstrap_servers)
        self._app = worker.new_app(
            APP_ID,
            bootstrap_servers=settings.kafka_bootstrap_servers,
            worker_id=settings.worker_id,
            session_timeout_ms=settings.session_timeout_ms,
            compression=settings.kafka_compression,
        )
        self._workers: dict[int, PartitionWorker] = {}
        self._followers: dict[int, ProfileFollower] = {}
        self._running: list[asyncio.Task[None]] = []
        self._server: GrpcServer | None = None
        telemetry.meter.create_observable_counter("features.acts_applied", callbacks=[self._observe], description="Acts applied.")
        telemetry.meter.create_observable_counter(
            "features.about_answers",
            callbacks=[self._observe_about_answers],
            description="Feedback about answers, which has no item: left.",
        )
        telemetry.meter.create_observable_counter(
            "features.profiles_applied", callbacks=[self._observe_profiles], description="Records of profiles.v1 in Redis."
        )
        telemetry.meter.create_observable_counter(
            "features.unreadable_states",
            callbacks=[lambda _: [Observation(self._store.num_unreadable)]],
            description="States in Redis that cannot be read and count as absent.",
        )
        self._num_applied_before = 0
        self._num_about_answers_before = 0
        self._num_profiles_before = 0
        self._add_agent()

    def _observe(self, _: Any) -> list[Any]:
        return [Observation(self._num_applied_before + sum(each.num_applied for each in list(self._workers.values())))]

    def _observe_about_answers(self, _: Any) -> list[Any]:
        return [Observation(self._num_about_answers_before + sum(each.num_about_answers for each in list(self._workers.values())))]

    def _observe_profiles(self, _: Any) -> list[Any]:
        return [Observation(self._num_profiles_before + sum(each.num_applied for each in list(self._followers.values())))]

    def _add_agent(self) -> None:
        async def feedback(stream: Any) -> None:
            async for event in stream.noack().events():
                message = event.message
                taker = self._workers.get(message.partition)
                if taker is not None and message.generation_id == self._app.consumer_generation_id:
                    await taker.take(message)

        self._app.agent(worker.raw_topic(self._app, FEEDBACK.name), name="features.feedback")(worker.fatal(self._app, feedback))
        self._app.on_partitions_revoked.connect(self._on_revoked)
        self._app.on_partitions_assigned.connect(self._on_assigned)

    async def run(self, server: GrpcServer) -> None:
        """Keep the features up to date until cancelled.

        Raises:
            Unavailable: Kafka, a topic or Redis is not there, even after a while.
            ConfigurationError: the topics are not partitioned as configured, or Redis holds the features of another broker's history.
            StreamFailed: something broke; the next process takes up from the committed offsets.
        """
        self._server = server
        await worker.when_available("Kafka", self._connect)
        await worker.when_available("Redis", self._store.ping)
        for partition in range(self._settings.user_partitions):
            await self._check_history(partition, await self._store.open(partition))
        following = asyncio.create_task(self._catalog.follow(self._reader), name="following the catalogue")
        try:
            await worker.run_until_failure(self._app, following)
        finally:
            following.cancel()

    async def _connect(self) -> None:
        await self._reader.start()
        await self._reader.check_partitions([FEEDBACK.name, PROFILES.name], self._settings.user_partitions)
        await self._reader.check_partitions([CATALOG.name, FEEDBACK.dlq, PROFILES.dlq])
        if not self._producer.connected:
            await self._producer.start(wait_s=1.0)

    async def _check_history(self, partition: int, reducer: FeaturePartition) -> None:
        """States that are ahead of the log were made from another log: every act would count as known, silently."""
        end = await self._reader.last_end(FEEDBACK.name, partition)
        if reducer.global_state.last_offset >= end:
            raise ConfigurationError(
                f"Redis (REDIS_URL) holds features up to offset {reducer.global_state.last_offset} of "
                f"{FEEDBACK.name}[{partition}], which ends at {end}: the broker lost its data or is another one; "
                "empty that Redis (and run the backfill again), or set REDIS_URL to one of this broker's"
            )

    async def _set_aside(self, message: Any, reason: str, detail: str) -> None:
        """Write a record of feedback.v1 or profiles.v1 to its topic's dead letters."""
        _log.warning("%s[%d] offset %d is set aside: %s", message.topic, message.partition, message.offset, detail)
        letter = dead_letter(
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            reason=reason,
            detail=detail,
            key=message.key,
            value=message.value,
            headers=tuple(message.headers or ()),
        )
        dlq = PROFILES.dlq if message.topic == PROFILES.name else FEEDBACK.dlq
        record = Record(dlq, message.key or b"", letter.SerializeToString(), dead_letter_headers(letter, _SOURCE))
        await self._undeliverable.send_until_acknowledged(self._producer, [record])

    async def stop(self) -> None:
        """Leave the group and close the connections. What is not acknowledged is read again by the next process."""
        await self._on_revoked(self._app, ())
        await self._app.stop()
        await self._reader.stop()
        await self._producer.stop()
        await self._store.close()
        await self._profiles.close()
        self._strikes.close()

    async def _on_revoked(self, _app: Any, _revoked: Any, **_: Any) -> None:
        """Every rebalance takes all partitions away. A write that is under way is cut short: Redis takes it whole or not at all."""
        for each in self._workers.values():
            each.close()
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=1.0)
        self._num_applied_before += sum(each.num_applied for each in self._workers.values())
        self._num_about_answers_before += sum(each.num_about_answers for each in self._workers.values())
        self._num_profiles_before += sum(each.num_applied for each in self._followers.values())
        self._running.clear()
        self._workers.clear()
        self._followers.clear()

    async def _on_assigned(self, _app: Any, assigned: Any, **_: Any) -> None:
        for partition in sorted({at.partition for at in assigned if at.topic == FEEDBACK.name}):
            taker = PartitionWorker(
                partition,
                self._settings,
                self._store,
                self._catalog,
                self._strikes,
                self._set_aside,
                lambda message: message.ack(self._app.consumer),
            )
            self._workers[partition] = taker
            self._followers[partition] = ProfileFollower(partition, self._profiles, self._strikes, self._set_aside)
            self._run(self._work(partition, taker), f"features of partition {partition}")
            self._run(self._followers[partition].follow(self._reader), f"profiles of partition {partition}")
        if self._server is not None:
            await self._server.set_serving(True)

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(worker.crash_on_failure(self._app))
        self._running.append(task)

    async def _work(self, partition: int, taker: PartitionWorker) -> None:
        opened: list[FeaturePartition] = []

        async def open_partition() -> None:
            opened.append(await self._store.open(partition))

        await _until_redis_answers(open_partition)
        await self._check_history(partition, opened[0])  # again: the broker may have lost its data since the start
        _log.info("partition %d taken up after offset %d", partition, opened[0].global_state.last_offset)
        await taker.run(opened[0])
