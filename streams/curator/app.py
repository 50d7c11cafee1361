"""The curator's wiring: what it reads, what it writes with, how a partition is opened, and the examples that it must not write again."""

from __future__ import annotations

import asyncio

from services.common.events.topics import FEEDBACK, GENERATIONS, LLM_EXAMPLES
from services.common.events.undeliverable import Undeliverable
from services.common.platform.clock import wall_ms
from services.common.platform.errors import Unavailable
from services.common.platform.kafka_async import AsyncProducer
from services.common.platform.telemetry import Telemetry
from services.common.platform.topic_follower import TopicFollower
from streams.curator.answer_store import AnswerStore
from streams.curator.catch_up import catch_up
from streams.curator.core import CurateConfig, CuratorPartition
from streams.curator.model import Cut, Example
from streams.curator.partition import curation_of
from streams.curator.seen_examples import SeenExamples
from streams.curator.settings import CuratorSettings
from streams.partitioned.app import PartitionedApp
from streams.partitioned.intake import Intake
from streams.partitioned.output import RepeatingOutput
from streams.partitioned.runtime import Partition

_EXAMPLES_TIMEOUT_S = 60.0
_MAX_OUTBOX = 2_000


class Curator:
    """Makes examples of answers and the feedback about them. Its `app` is the process."""

    def __init__(self, settings: CuratorSettings, telemetry: Telemetry) -> None:
        """Connects nothing."""
        self._settings = settings
        self._config = CurateConfig(window_ms=settings.window_ms, wait_ms=settings.wait_ms)
        self._stores: dict[int, AnswerStore] = {}
        self._telemetry = telemetry
        self._undeliverable = Undeliverable(telemetry)
        self._seen = SeenExamples()
        self.app: PartitionedApp[Example, Cut] = PartitionedApp(
            "curator",
            (GENERATIONS, FEEDBACK),
            settings,
            telemetry,
            open_partition=self._open,
            max_outbox=_MAX_OUTBOX,
            connect=self._connect,
            disconnect=self._disconnect,
            before_reading=self._follow_examples,
            on_revoked=self._on_revoked,
        )
        brokers, client = settings.kafka_bootstrap_servers, self.app.app_id
        self._producer = AsyncProducer(
            brokers, client_id=client, delivery_timeout_ms=settings.delivery_timeout_ms, compression=settings.kafka_compression
        )
        self._follower = TopicFollower(brokers, LLM_EXAMPLES.name, self._seen, client_id=client)

    async def _connect(self) -> None:
        await self.app.reader.check_partitions([LLM_EXAMPLES.name, LLM_EXAMPLES.dlq])
        if not self._producer.connected:
            await self._producer.start(wait_s=1.0)

    async def _follow_examples(self) -> None:
        self._follower.start()
        if not await asyncio.to_thread(self._follower.wait_ready, _EXAMPLES_TIMEOUT_S):
            raise Unavailable(f"{LLM_EXAMPLES.name} could not be read to its end in {_EXAMPLES_TIMEOUT_S:.0f} s")

    async def _disconnect(self) -> None:
        self._on_revoked()
        await self._producer.stop()
        await asyncio.to_thread(self._follower.stop, 1.0)

    def _on_revoked(self) -> None:
        self._seen.forget_unconfirmed()
        for store in self._stores.values():
            store.close()
        self._stores.clear()

    async def _open(self, number: int, intake: Intake) -> tuple[Partition[Example, Cut], RepeatingOutput]:
        path = self._settings.store_dir / f"answers-{number}.sqlite"
        store = AnswerStore(path, max_bytes=self._settings.max_store_bytes // self._settings.user_partitions)
        self._stores[number] = store
        end, window_ms = intake.subjects.next_offset, self._config.window_ms
        await catch_up(store, self.app.reader, number, end, window_ms=window_ms, now_ms=wall_ms())
        core = CuratorPartition(self._config, intake, store, self._seen)
        return curation_of(core, self._telemetry), RepeatingOutput(self._producer, self._undeliverable)
