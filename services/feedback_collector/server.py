"""The feedback collector's only wiring: from the settings to what reaches the world, the core and the servicer."""

from __future__ import annotations

import logging

from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2, feedback_collector_service_pb2_grpc

from services.common.platform import grpc_server, telemetry
from services.common.platform.clock import wall_ms
from services.common.platform.kafka_async import AsyncProducer
from services.common.platform.settings import redacted
from services.feedback_collector.core import AcceptedIds, Collector, FeedbackLog
from services.feedback_collector.kafka_feedback_log import KafkaFeedbackLog
from services.feedback_collector.servicer import FeedbackCollectorServicer
from services.feedback_collector.settings import FeedbackCollectorSettings

SERVICE = "feedback_collector"

_log = logging.getLogger(__name__)


def make_collector(settings: FeedbackCollectorSettings, log: FeedbackLog) -> Collector:
    """Return the core with the real clock."""
    accepted = AcceptedIds(max_ids=settings.remembered_ids, ttl_ms=settings.remembered_ms)
    return Collector(log, accepted, max_batch=settings.max_batch, wall_ms=wall_ms)


def servicer_of(collector: Collector, signals: telemetry.Telemetry) -> grpc_server.Servicer:
    """Return what the gRPC server serves."""
    return grpc_server.Servicer(
        descriptor=feedback_collector_service_pb2.DESCRIPTOR.services_by_name["FeedbackCollectorService"],
        implementation=FeedbackCollectorServicer(collector, signals.meter),
        register=feedback_collector_service_pb2_grpc.add_FeedbackCollectorServiceServicer_to_server,
    )


async def run(settings: FeedbackCollectorSettings) -> None:
    """Serve until SIGTERM. While Kafka is down every call gets UNAVAILABLE.

    Raises:
        ConfigurationError: the telemetry folder cannot be written, or the port is taken.
    """
    signals = telemetry.configure(SERVICE, settings)
    _log.info("settings: %s", redacted(settings))
    producer = AsyncProducer(
        settings.kafka_bootstrap_servers,
        client_id=SERVICE,
        delivery_timeout_ms=settings.delivery_timeout_ms,
        max_in_flight=settings.max_in_flight,
        compression=settings.kafka_compression,
    )
    await producer.start(wait_s=1.0)
    servicer = servicer_of(make_collector(settings, KafkaFeedbackLog(producer)), signals)
    await grpc_server.serve([servicer], settings, signals, on_drain=producer.stop)
