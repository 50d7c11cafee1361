"""The joiner's wiring: what it reads, what it writes with, and how a partition is opened."""

from __future__ import annotations

import logging

from services.common.events.topics import EXPOSURES, FEEDBACK, SAMPLES
from services.common.events.undeliverable import Undeliverable
from services.common.platform.errors import Unavailable
from services.common.platform.kafka_async import AsyncProducer
from services.common.platform.telemetry import Telemetry
from services.common.ranker.feature_spec import FeatureSpec
from streams.joiner import codec
from streams.joiner.core import JoinerPartition
from streams.joiner.model import Cut, JoinConfig, SampleGroup
from streams.joiner.partition import join_of
from streams.joiner.settings import JoinerSettings
from streams.partitioned.app import PartitionedApp
from streams.partitioned.intake import Intake
from streams.partitioned.output import EndingOutput
from streams.partitioned.pace import TickPace
from streams.partitioned.runtime import Partition

_MAX_OUTBOX = 5_000
# Longer than a broker's restart: until then the client repeats a batch by itself, in order; after it the joiner ends, and the next one
# starts from the log.
_DELIVERY_TIMEOUT_MS = 60_000
# A request to the broker costs more than the join of an event.
_LINGER_MS = 50

_log = logging.getLogger(__name__)


class Joiner:
    """Joins exposures with feedback. Its `app` is the process."""

    def __init__(self, settings: JoinerSettings, telemetry: Telemetry) -> None:
        """Reads the feature spec; connects nothing.

        Raises:
            ConfigurationError: the feature spec is missing or wrong.
        """
        self._spec = FeatureSpec.load(settings.feature_spec_path)
        pace = TickPace(settings.tick_interval_ms, settings.tick_gap_ms)
        self._config = JoinConfig(
            window_ms=settings.window_ms,
            late_horizon_ms=settings.late_horizon_ms,
            tick_gap_ms=pace.gap_ms,
        )
        self._num_partitions = settings.user_partitions
        self._telemetry = telemetry
        self._undeliverable = Undeliverable(telemetry)
        self._brokers = settings.kafka_bootstrap_servers
        self._producer = AsyncProducer(
            self._brokers,
            client_id="tunemesh-joiner",
            delivery_timeout_ms=_DELIVERY_TIMEOUT_MS,
            linger_ms=_LINGER_MS,
            compression=settings.kafka_compression,
        )
        self.app: PartitionedApp[SampleGroup, Cut] = PartitionedApp(
            "joiner",
            (EXPOSURES, FEEDBACK),
            settings,
            telemetry,
            open_partition=self._open,
            max_outbox=_MAX_OUTBOX,
            pace=pace,
            connect=self._connect,
            disconnect=self._producer.stop,
        )

    async def _connect(self) -> None:
        await self.app.reader.check_partitions([SAMPLES.name], self._num_partitions)
        await self.app.reader.check_partitions([SAMPLES.dlq])
        if not await self._producer.start(wait_s=1.0):
            raise Unavailable(f"no Kafka broker at {self._brokers}")

    async def _open(self, number: int, intake: Intake) -> tuple[Partition[SampleGroup, Cut], EndingOutput]:
        tick = await self.app.reader.find_last(SAMPLES.name, number, lambda record: codec.read_tick(record.value))
        exposures_log = await self.app.reader.incarnation(EXPOSURES.name)
        exposures_end = await self.app.reader.last_end(EXPOSURES.name, number)
        feedback_end = await self.app.reader.last_end(FEEDBACK.name, number)
        resume = codec.resume_from(tick, exposures_end, exposures_log, feedback_end=feedback_end)
        if tick is not None and resume.exposures_position < tick.exposures_position:
            _log.warning(
                "partition %d: its last tick says that exposures below offset %d are done, but %s began anew since: it is read "
                "from what is committed", number, tick.exposures_position, EXPOSURES.name,
            )  # fmt: skip
        _log.info(
            "partition %d: its last tick says that feedback below offset %d and exposures below %d are done",
            number, resume.feedback_position, resume.exposures_position,
        )  # fmt: skip
        core = JoinerPartition(self._spec, self._config, intake, resume)
        partition = join_of(number, core, self._spec.schema_hash, self._telemetry, exposures_log)
        return partition, EndingOutput(self._producer, self._undeliverable)
