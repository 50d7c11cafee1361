"""The updater's wiring: from the settings to feed, artifacts and worker, with health beside them."""

from __future__ import annotations

import asyncio
import logging
import threading

from services.common.platform.grpc_server import GrpcServer, serve
from services.common.platform.settings import redacted
from services.common.platform.telemetry import Telemetry, configure
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.tables.warm_up import warm_up_tables
from services.common.ranker.tables.writer import ModelWriter
from services.recommender.updater.base_artifact import load_base
from services.recommender.updater.core import Follower, Identity
from services.recommender.updater.kafka_feed import KafkaFeed
from services.recommender.updater.settings import UpdaterSettings
from services.recommender.updater.worker import Timing, Updater

_log = logging.getLogger(__name__)


def make_updater(settings: UpdaterSettings, spec: FeatureSpec, writer: ModelWriter, telemetry: Telemetry, server: GrpcServer) -> Updater:
    """Return the updater; health says SERVING once the tables are usable."""
    return Updater(
        Follower(Identity(model=spec.model, schema_hash=spec.schema_hash)),
        writer,
        lambda: KafkaFeed(
            settings.kafka_bootstrap_servers,
            model=spec.model,
            schema_hash=spec.schema_hash,
            replica_id=settings.replica_id,
            compression=settings.kafka_compression,
        ),
        load_base,
        timing=Timing(
            poll_s=settings.poll_ms / 1e3,
            report_s=settings.report_interval_ms / 1e3,
            retry_s=settings.retry_ms / 1e3,
            check_s=settings.check_interval_ms / 1e3,
        ),
        telemetry=telemetry,
        on_ready=lambda: server.set_serving_threadsafe(True),
    )


async def run(settings: UpdaterSettings) -> None:
    """Follow until SIGTERM.

    Raises:
        ConfigurationError: the feature spec or the port is wrong, or another process writes the tables.
    """
    spec = FeatureSpec.load(settings.feature_spec_path)
    telemetry = configure("updater", settings)
    _log.info("settings: %s", redacted(settings))
    await asyncio.to_thread(warm_up_tables)  # opening tables is compiled code as well
    writer = ModelWriter(settings.tables_dir, spec.schema_hash)
    stop, idle = threading.Event(), threading.Event()
    idle.set()

    async def follow(server: GrpcServer) -> None:
        updater = make_updater(settings, spec, writer, telemetry, server)

        def work() -> None:
            try:
                updater.run(stop)
            finally:
                idle.set()

        idle.clear()
        await asyncio.to_thread(work)

    async def close() -> None:
        stop.set()
        # A delta is applied in milliseconds, a base in seconds.
        if await asyncio.to_thread(idle.wait, settings.drain_grace_ms / 1e3):
            writer.close()
        # Else the thread may still write: the lock goes with the process.

    await serve([], settings, telemetry, on_drain=close, main=follow, serving=False)
