"""The router's only wiring: settings -> adapters -> core -> servicer."""

from __future__ import annotations

import logging
import time

from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc

from services.common import grpc_server, telemetry
from services.common.ids import uuid7
from services.common.kafka_async import AsyncProducer
from services.common.settings import redacted, variable_of
from services.router.adapters import DegradedAnswers, GrpcRecommender
from services.router.core import ExposureLog, Limits, RecentAnswers, Recommender, Router
from services.router.exposure_log import KafkaExposureLog
from services.router.servicer import RouterServicer
from services.router.settings import RouterSettings
from services.router.spool import Spool

SERVICE = "router"

_log = logging.getLogger(__name__)


def make_router(settings: RouterSettings, recommender: Recommender, exposures: ExposureLog) -> Router:
    """Return the core with the real clocks and ids."""
    limits = Limits(
        max_candidates=settings.max_candidates,
        default_limit=settings.default_limit,
        default_deadline_s=settings.default_deadline_ms / 1e3,
        max_deadline_s=settings.max_deadline_ms / 1e3,
    )
    return Router(
        recommender,
        exposures,
        RecentAnswers(ttl_s=settings.idempotency_ttl_ms / 1e3, max_entries=settings.idempotency_max_entries),
        limits=limits,
        variant=settings.variant,
        monotonic_s=time.monotonic,
        wall_ms=lambda: time.time_ns() // 1_000_000,
        new_request_id=uuid7,
    )


def servicer_of(router: Router, signals: telemetry.Telemetry) -> grpc_server.Servicer:
    """Return what the gRPC server serves."""
    return grpc_server.Servicer(
        descriptor=router_service_pb2.DESCRIPTOR.services_by_name["RouterService"],
        implementation=RouterServicer(router, DegradedAnswers(signals)),
        register=router_service_pb2_grpc.add_RouterServiceServicer_to_server,
    )


async def run(settings: RouterSettings) -> None:
    """Serve until SIGTERM. Kafka may be away: exposures then wait on disk.

    Raises:
        ConfigurationError: a folder cannot be written, or the port is taken.
    """
    signals = telemetry.configure(SERVICE, settings)
    _log.info("settings: %s", redacted(settings))
    spool = Spool(settings.spool_dir, max_bytes=settings.spool_max_bytes, variable=variable_of(settings, "spool_dir"))
    producer = AsyncProducer(settings.kafka_bootstrap_servers, client_id=SERVICE, delivery_timeout_ms=settings.delivery_timeout_ms)
    exposures = KafkaExposureLog(
        producer, spool, max_buffered=settings.exposure_buffer, flush_interval_ms=settings.flush_interval_ms, telemetry=signals
    )
    recommender = GrpcRecommender(settings.recommender_target, max_message_bytes=settings.max_message_bytes)
    await producer.start(wait_s=1.0)
    exposures.start()

    async def on_drain() -> None:
        await exposures.close()
        await producer.stop()
        await recommender.close()

    servicer = servicer_of(make_router(settings, recommender, exposures), signals)
    await grpc_server.serve([servicer], settings, signals, on_drain=on_drain, main=lambda _: exposures.watch())
